"""Huge pages for the memory of a program on Linux.

Each step on a CPU allocates and frees its temporaries: 120 MB on each of two devices for a decoder of 4.5 million
parameters, or 59,600 page faults per step with pages of 4 KB. With pages of 2 MB there are 600 to 750, and the step
takes 9 to 14 % less processor time. glibc reads the setting only at the start of a program, so the program restarts
itself once. This module is imported before the restart, so it imports hardly anything.
"""

import os
import sys
from collections.abc import Sequence

VARIABLE, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
KERNEL_SETTING = "/sys/kernel/mm/transparent_hugepage/enabled"
COMMANDS = frozenset(
    {"train", "evaluate", "predict", "explain", "plan", "tune", "compile", "data", "launch", "supervise"}
)
"""The commands that compute, or start processes that do: for the others a restart takes longer than it saves. It is no
column of the table in `verbs.py`, since the import of that takes as long as the restart; a test compares the two."""


def restart_with_huge_pages() -> None:
    """Restarts this program in the same process with huge pages, if the kernel provides them on request.

    Call it first. It does nothing if GLIBC_TUNABLES already sets `glibc.malloc.hugetlb`, for example to 0.
    """
    if not sys.orig_argv:
        return
    try:
        with open(KERNEL_SETTING) as file:
            setting = file.read()
    except FileNotFoundError:
        return
    if needs_restart(setting, os.environ.get(VARIABLE, "")):
        from engine.cli.entry import delay_interrupt

        delay_interrupt()  # so that Ctrl-C does not meet Python's own start, which would print a traceback
        os.environ[VARIABLE] = ":".join(filter(None, (os.environ.get(VARIABLE), f"{TUNABLE}=1")))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def computes(words: Sequence[str]) -> bool:
    """Returns whether a command line, without the program, is one of COMMANDS, and not a question for its help."""
    before = words[: words.index("--")] if "--" in words else words
    return bool(before) and before[0] in COMMANDS and not {"-h", "--help"} & {*before}


def needs_restart(setting: str, tunables: str) -> bool:
    """Returns whether the kernel provides huge pages on request and the user has not set them.

    Args:
        setting: content of the kernel's setting, such as "always [madvise] never".
        tunables: value of GLIBC_TUNABLES.
    """
    return "[madvise]" in setting and TUNABLE not in tunables
