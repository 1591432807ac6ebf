"""Huge pages for the memory of a program on Linux.

Each step on a CPU allocates and frees its temporaries: 120 MB on each of two devices for a decoder of 4.5 million
parameters, or 59,600 page faults per step with pages of 4 KB. With pages of 2 MB there are 600 to 750, and the step
takes 9 to 14 % less processor time. glibc reads the setting only at the start of a program, so the program restarts
itself once. This module does not import jax.
"""

import os
import sys
from pathlib import Path

VARIABLE, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
KERNEL_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Restarts this program in the same process with huge pages, if the kernel provides them on request.

    Call it first. It does nothing if GLIBC_TUNABLES already sets `glibc.malloc.hugetlb`, for example to 0.
    """
    setting = KERNEL_SETTING.read_text() if KERNEL_SETTING.exists() else ""
    if sys.orig_argv and needs_restart(setting, os.environ.get(VARIABLE, "")):
        os.environ[VARIABLE] = ":".join(filter(None, (os.environ.get(VARIABLE), f"{TUNABLE}=1")))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def needs_restart(setting: str, tunables: str) -> bool:
    """Returns whether the kernel provides huge pages on request and the user has not set them.

    Args:
        setting: content of the kernel's setting, such as "always [madvise] never".
        tunables: value of GLIBC_TUNABLES.
    """
    return "[madvise]" in setting and TUNABLE not in tunables
