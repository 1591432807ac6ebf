"""Large pages: a program starts anew once, with its arguments, where the kernel gives them to those who ask."""

import os
import subprocess
import sys

import pytest

from engine.launch import huge_pages

PROGRAM = """
import os, sys
from engine.launch.huge_pages import start_with_large_pages
start_with_large_pages()
print(os.environ.get("GLIBC_TUNABLES", ""), sys.argv[1:])
"""


def run(tunables):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    env.pop(huge_pages.TUNABLES, None)
    env |= {huge_pages.TUNABLES: tunables} if tunables else {}
    return subprocess.check_output([sys.executable, "-c", PROGRAM, "a b", "--c"], env=env, text=True).strip()


@pytest.mark.parametrize("before", ["", "glibc.malloc.check=0"])
def test_a_program_goes_on_with_its_arguments_and_with_large_pages_where_they_come_by_asking(before):
    asks = huge_pages.KERNEL.exists() and "[madvise]" in huge_pages.KERNEL.read_text()
    after = ":".join(filter(None, (before, "glibc.malloc.hugetlb=1"))) if asks else before
    assert run(before) == f"{after} ['a b', '--c']".strip()


def test_whoever_has_decided_is_left_alone():
    assert run("glibc.malloc.hugetlb=0") == "glibc.malloc.hugetlb=0 ['a b', '--c']"
    assert not huge_pages.wanted("always [madvise] never", "glibc.malloc.hugetlb=0")


def test_pages_are_asked_for_only_where_the_kernel_waits_to_be_asked():
    assert huge_pages.wanted("always [madvise] never\n", "")
    assert not any(huge_pages.wanted(kernel, "") for kernel in ("[always] madvise never", "always madvise [never]", ""))
