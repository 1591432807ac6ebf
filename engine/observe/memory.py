"""Memory that the process and its devices use.

Owns: `memory_use`. What a platform does not tell is left out: JAX knows nothing of the memory of a CPU device.
"""

import os
import resource
import sys
from pathlib import Path

_GIB = 2**30


def memory_use() -> dict[str, float]:
    """Returns `host_rss_gib`, what this process holds now, and `device_peak_gib`, the fullest local device so far.

    Microseconds; no device is waited for.
    """
    import jax

    use = {"host_rss_gib": _resident_bytes() / _GIB}
    stats = (device.memory_stats() or {} for device in jax.local_devices())
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    if peaks:
        use["device_peak_gib"] = max(peaks) / _GIB
    return use


def _resident_bytes() -> int:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # not Linux: the peak stands in for the present
    return peak if sys.platform == "darwin" else peak * 1024
