"""Memory use of this process and its devices.

Values that a platform does not provide are left out: JAX does not report the memory of CPU devices.
"""

import os
import resource
import sys

_GIB = 2**30


def memory_use() -> dict[str, float]:
    """Returns `host_rss_gib`, the resident memory now, and `device_peak_gib`, the highest peak of a local device.

    Takes microseconds and does not wait for a device.
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
    except FileNotFoundError:  # not Linux: the peak, since the current value is not available
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
