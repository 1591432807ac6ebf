"""Ends that wait for nothing: from a thread, at once, in some seconds, after a bound."""

import os
import subprocess
import sys

from engine.cluster import verdict


def run(program: str) -> subprocess.CompletedProcess[str]:
    imports = "import atexit, time\nfrom engine.cluster import shutdown\nfrom engine.config.errors import RunError\n"
    dropped = ("PYTHONUNBUFFERED", verdict.VARIABLE)
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    return subprocess.run(
        [sys.executable, "-c", imports + program], capture_output=True, text=True, env=environment, timeout=30
    )


def test_an_exit_at_once_shows_what_was_printed_and_runs_nothing_more():
    done = run("atexit.register(print, 'never')\nprint('said', end='')\nshutdown.exit_now(43)")
    assert (done.returncode, done.stdout) == (43, "said")


def test_a_thread_ends_the_process_with_verdict_last_acts_and_exit_code():
    done = run("""
import threading
def broken(error):
    raise OSError
for act in (lambda error: print("first", error), broken, lambda error: print("second")):
    shutdown.add_last_act(act)
shutdown.add_last_act(print)
shutdown.remove_last_act(print)
threading.Thread(target=lambda: shutdown.end(RunError("stuck."))).start()
time.sleep(60)
""")
    assert (done.returncode, done.stdout, done.stderr) == (1, "second\nfirst stuck.\n", "RunError: stuck.\n")


def test_a_last_act_that_hangs_does_not_keep_the_process():
    done = run("""
import types
shutdown.timeouts = types.SimpleNamespace(LAST_ACTS_S=0.1)
shutdown.add_last_act(lambda error: time.sleep(60))
shutdown.end(RunError("stuck."))
""")
    assert (done.returncode, done.stderr) == (1, "RunError: stuck.\n")


def test_threads_that_never_end_do_not_keep_the_process():
    done = run("""
import sys, threading
threading.Thread(target=time.sleep, args=(60,)).start()
shutdown.exit_soon(42)
print("said", end="")
sys.exit(42)
""")
    assert (done.returncode, done.stdout) == (42, "said")


def test_a_wait_beyond_its_bound_ends_the_process_with_a_sentence():
    done = run("with shutdown.bounded(0.1, lambda: RunError('waited 0.1 s')):\n    time.sleep(60)")
    assert (done.returncode, done.stderr) == (1, "RunError: waited 0.1 s\n")
    assert run("with shutdown.bounded(0.1, lambda: RunError('late')):\n    pass\ntime.sleep(0.3)").returncode == 0
