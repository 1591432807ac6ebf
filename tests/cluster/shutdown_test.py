"""Exits that cannot hang: from a thread, immediately, after some seconds, after a deadline."""

import os
import subprocess
import sys

from engine.cluster import verdict


def run(program: str) -> subprocess.CompletedProcess[str]:
    imports = "import atexit, time\nfrom engine.cluster import shutdown\nfrom engine.base.errors import RunError\n"
    dropped = ("PYTHONUNBUFFERED", verdict.VARIABLE)
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    return subprocess.run(
        [sys.executable, "-c", imports + program], capture_output=True, text=True, env=environment, timeout=180
    )


def test_exit_now_flushes_output_and_skips_atexit():
    done = run("atexit.register(print, 'never')\nprint('printed', end='')\nshutdown.exit_now(43)")
    assert (done.returncode, done.stdout) == (43, "printed")


def test_end_from_a_thread_reports_runs_callbacks_and_exits():
    done = run("""
import threading
def broken(error):
    raise OSError
for callback in (lambda error: print("first", error), broken, lambda error: print("second")):
    shutdown.add_exit_callback(callback)
shutdown.add_exit_callback(print)
shutdown.remove_exit_callback(print)
threading.Thread(target=lambda: shutdown.end(RunError("stuck."))).start()
time.sleep(60)
""")
    assert (done.returncode, done.stdout, done.stderr) == (1, "second\nfirst stuck.\n", "RunError: stuck.\n")


def test_hanging_exit_callback_does_not_prevent_the_exit():
    done = run("""
import types
shutdown.timeouts = types.SimpleNamespace(EXIT_CALLBACKS_S=0.1)
shutdown.add_exit_callback(lambda error: time.sleep(60))
shutdown.end(RunError("stuck."))
""")
    assert (done.returncode, done.stderr) == (1, "RunError: stuck.\n")


def test_exit_soon_does_not_wait_for_endless_threads():
    done = run("""
import sys, threading
threading.Thread(target=time.sleep, args=(60,)).start()
shutdown.exit_soon(42)
print("printed", end="")
sys.exit(42)
""")
    assert (done.returncode, done.stdout) == (42, "printed")


def test_deadline_ends_the_process_with_an_error():
    done = run("with shutdown.deadline(0.1, lambda: RunError('waited 0.1 s')):\n    time.sleep(60)")
    assert (done.returncode, done.stderr) == (1, "RunError: waited 0.1 s\n")
    assert run("with shutdown.deadline(2, lambda: RunError('late')):\n    pass\ntime.sleep(2.5)").returncode == 0
