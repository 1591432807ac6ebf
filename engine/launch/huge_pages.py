"""Large pages for the memory of a program on Linux.

A step on a CPU takes memory for its temporaries from the C library and gives it back, each time: 120 MB on each of two
devices for a decoder of 4.5 million parameters, or 59,600 page faults a step in pages of 4 KB. In pages of 2 MB they
are 600 to 750, and the step takes 9 to 14 % less processor time. glibc asks the kernel for them only if it is told so
before the program starts, so the program starts anew.
"""

import os
import sys
from pathlib import Path

TUNABLES, LARGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def start_with_large_pages() -> None:
    """Starts this program anew, as the same process, where that gives it large pages; else does nothing.

    To be called first. The variable GLIBC_TUNABLES has the last word: with `glibc.malloc.hugetlb=0` nothing is changed.
    """
    kernel = KERNEL.read_text() if KERNEL.exists() else ""
    if sys.orig_argv and wanted(kernel, os.environ.get(TUNABLES, "")):
        os.environ[TUNABLES] = ":".join(filter(None, (os.environ.get(TUNABLES), f"{LARGE}=1")))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def wanted(kernel: str, tunables: str) -> bool:
    """Whether large pages come by asking, and nobody has decided about them.

    Args:
        kernel: what the kernel says of them, as "always [madvise] never".
        tunables: of glibc, as in its variable.
    """
    return "[madvise]" in kernel and LARGE not in tunables
