"""A process that is stopped and continued."""

import os
import signal
import subprocess
import sys
import threading
import time

from engine.cluster import stop_signal

PROGRAM = """
import signal, threading, time
from engine.cluster import stop_signal
from engine.loop.preemption import Preemption
done = threading.Event()
def on_continue(seconds):
    print(seconds, flush=True)
    done.set()
stop_signal.watch(on_continue, threading.Event())
with Preemption():  # which reads signals too
    print("ready", flush=True)
    while not done.wait(60):
        pass
"""


def test_process_measures_how_long_it_was_stopped():
    child = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        begin = time.monotonic()
        time.sleep(0.5)
        child.send_signal(signal.SIGCONT)
        measured = float(child.stdout.readline())
        assert 0.5 <= measured <= time.monotonic() - begin + 5
    finally:
        child.kill()
        child.communicate()


def test_outside_the_main_thread_nothing_is_watched():
    found = []
    thread = threading.Thread(target=lambda: found.append(stop_signal.watch(print, threading.Event())))
    thread.start()
    thread.join()
    assert found == [None]
