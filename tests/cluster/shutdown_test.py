"""Exits that cannot hang: from a thread, immediately, after some seconds, after a deadline, and of failed threads."""

import os
import re
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


THREADS = """
import ctypes, os, signal, sys, tempfile, threading
from pathlib import Path
from engine.base.errors import ConvoyError
from engine.cluster import group, kv_store, peer_failure, signal_thread
from engine.loop.preemption import Preemption
from engine.loop.watchdog import Watchdog
from engine.observe.writer import MetricWriter
from engine.run.lease import acquire
from engine.storage.background import Background

folder = Path(tempfile.mkdtemp())
writer = None

def write_metrics():
    global writer
    writer = MetricWriter(None, None)

def wake():
    os.kill(os.getpid(), signal.SIGURG)
    if writer is not None:
        writer.push(lambda: None)
    kv_store.put("any", "")  # a change of the store wakes the thread that waits for a verdict

def signals():
    signal.signal(signal.SIGURG, lambda number, frame: None)
    signal_thread.watch((signal.SIGURG,), lambda number: None)

def fail(error):
    raise error

starts = {
    "lease": lambda: acquire(folder / "lease", heartbeat_s=0.02),
    "convoy-writer": write_metrics,
    "watchdog": lambda: Watchdog(0.2, 1.0, folder, 1).__enter__(),
    "signals": signals,
    "watch_stop_signal": peer_failure.watch,
    "watch_verdict": peer_failure.watch,
    "watch_heartbeats": peer_failure.watch,
    "step-agreement": lambda: group.StepAgreement("stop", lambda: None)._thread.start(),
    "timer": lambda: shutdown.start_timer(0.0, lambda: [][0]),
    "own-error": lambda: shutdown.RunThread(lambda: fail(ConvoyError("no disk.")), "own-error").start(),
    "no-thread": lambda: shutdown.RunThread(lambda: fail(RuntimeError("can't start new thread")), "no-thread").start(),
}
signal.signal(signal.SIGURG, lambda number, frame: None)
for name, start in starts.items():
    sys.stdout.flush()
    if os.fork() == 0:
        shutdown.add_exit_callback(lambda error: print(name, type(error).__name__, flush=True))
        start()
        for thread in threading.enumerate():
            if thread.name == name and name not in ("own-error", "no-thread"):
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(MemoryError))
        while True:
            wake()
            time.sleep(0.05)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def test_each_thread_of_a_run_that_fails_ends_the_process_with_its_reason():
    done = run(THREADS)
    ends = re.findall(r"(.+) (.+)\n(.+)\n", done.stdout)
    assert [name for name, _, _ in ends] == [
        *("lease", "convoy-writer", "watchdog", "signals", "watch_stop_signal", "watch_verdict", "watch_heartbeats"),
        *("step-agreement", "timer", "own-error", "no-thread"),
    ], done.stderr
    for (name, kind, code), text in zip(ends, done.stderr.splitlines(), strict=True):
        if name == "own-error":
            assert (kind, code, text) == ("ConvoyError", "1", "ConvoyError: no disk.")
            continue
        assert (kind, code) == ("ThreadFailed", "42")
        assert text.startswith(f"ThreadFailed: the thread {name} has failed: ")
        assert ("IndexError" if name == "timer" else "ulimit") in text and "The traceback is in " in text
        assert text.endswith("The run cannot go on without it. The same command resumes from the newest checkpoint.")


def test_failure_of_a_thread_that_a_run_can_do_without_is_a_warning():
    done = run("""
thread = shutdown.RunThread(lambda: [][0], "extra", otherwise="Nothing is counted.")
thread.start()
thread.join()
""")
    assert done.returncode == 0
    assert done.stderr.startswith("the thread extra has failed: IndexError: list index out of range")
    assert done.stderr.endswith("Nothing is counted.\n")


def test_end_runs_the_callbacks_where_no_thread_can_be_started():
    done = run("""
def refuse(thread):
    raise RuntimeError("can't start new thread")
shutdown.threading.Thread.start = refuse
shutdown.add_exit_callback(lambda error: print("called"))
shutdown.end(RunError("stuck."))
""")
    assert (done.returncode, done.stdout, done.stderr) == (1, "called\n", "RunError: stuck.\n")
