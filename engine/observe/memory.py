"""Memory that the process and its devices use.

What a platform does not report is left out: JAX has no figures for the memory of a CPU device.
"""

import os
import resource
import sys

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
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:  # not Linux: the peak stands in for the present
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
