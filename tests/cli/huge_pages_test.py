"""Huge pages: a program restarts once, with its arguments, if the kernel provides them on request."""

import os
import pathlib
import subprocess
import sys

import pytest

from engine.cli import huge_pages
from engine.cli.verbs import VERBS

PROGRAM = """
import os, sys
from engine.cli.huge_pages import restart_with_huge_pages
restart_with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES", ""), sys.argv[1:])
"""


def run(tunables):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    env.pop(huge_pages.VARIABLE, None)
    env |= {huge_pages.VARIABLE: tunables} if tunables else {}
    return subprocess.check_output([sys.executable, "-c", PROGRAM, "a b", "--c"], env=env, text=True).strip()


@pytest.mark.parametrize("before", ["", "glibc.malloc.check=0"])
def test_program_restarts_with_its_arguments_if_huge_pages_are_on_request(before):
    kernel = pathlib.Path(huge_pages.KERNEL_SETTING)
    asks = kernel.exists() and "[madvise]" in kernel.read_text()
    after = ":".join(filter(None, (before, "glibc.malloc.hugetlb=1"))) if asks else before
    assert run(before) == f"{after} ['a b', '--c']".strip()


def test_setting_of_the_user_is_kept():
    assert run("glibc.malloc.hugetlb=0") == "glibc.malloc.hugetlb=0 ['a b', '--c']"
    assert not huge_pages.needs_restart("always [madvise] never", "glibc.malloc.hugetlb=0")


def test_restart_is_needed_only_if_huge_pages_are_on_request():
    assert huge_pages.needs_restart("always [madvise] never\n", "")
    assert not any(
        huge_pages.needs_restart(kernel, "") for kernel in ("[always] madvise never", "always madvise [never]", "")
    )


def test_only_commands_that_compute_restart():
    assert {name for name in VERBS if huge_pages.computes([name])} == huge_pages.COMMANDS
    light = {"init", "plot", "report", "config", "checkpoints", "export", "import", "runs", "compare", "goodput"}
    light |= {"bench", "doctor", "sweep"}
    assert set(VERBS) == huge_pages.COMMANDS | light  # decide for a new verb
    for words in ([], ["trian"], ["--help"], ["train", "--help"], ["launch", "-h", "--", "train"]):
        assert not huge_pages.computes(words)
    assert huge_pages.computes(["launch", "local", "--", "train", "--help"])
