"""Ctrl-C before a verb runs."""

import signal
import subprocess
import sys

import pytest

from tests import runs

INTERRUPT = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "engine.cli.arguments":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
"""
DELAYED = "import signal\nfrom engine.cli.entry import delay_interrupt\ndelay_interrupt()\nsignal.raise_signal(2)\n"


@pytest.mark.parametrize("before", [INTERRUPT, DELAYED], ids=["during imports", "during the restart"])
@pytest.mark.parametrize(
    "start",
    [
        "from engine.cli.entry import run; run()",
        "import runpy; runpy.run_module('engine.cli.main', run_name='__main__')",
    ],
    ids=["script", "module"],
)
def test_interrupt_before_main_ends_without_a_traceback(before, start):
    code = f"{before}\n{start}"
    done = subprocess.run(
        [sys.executable, "-c", code, "runs"], env=runs.environment(), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_restart_of_a_program_that_calls_run_does_not_block_interrupts():
    code = f"{DELAYED}\nfrom engine.cli.main import run; run()"
    done = subprocess.run([sys.executable, "-c", code, "runs"], env=runs.environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_interrupt_that_is_ignored_stays_ignored():
    code = "import signal\nsignal.signal(2, signal.SIG_IGN)\nfrom engine.cli.entry import end_on_interrupt\n"
    code += "end_on_interrupt()\nsignal.raise_signal(2)\nprint('running')"
    done = subprocess.run([sys.executable, "-c", code], env=runs.environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "running\n"), done.stderr
