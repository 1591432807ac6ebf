"""Parents and children: a child dies with its parent, and a parent that only waits tells how its child has ended.

On Linux the kernel kills a process when its parent dies (`prctl(2)`, PR_SET_PDEATHSIG), even if it is stuck or stopped.
The parent is the *thread* that started the process, so that thread must live as long as the process.
"""

import contextlib
import ctypes
import gc
import os
import signal
import sys
import warnings
from collections.abc import Callable

from engine.cluster import output
from engine.cluster.exit_status import ExitStatus

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h
_SI_KERNEL = 0x80  # from asm-generic/siginfo.h
_STOP = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
# These stop or end a process at once: a signal for job control stops the parent too, and the others are faults.
_NOT_FORWARDED = {
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGPIPE),
    *(signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP),
}

_command = 0  # the parent that waits for this process, if there is one


def kill_with(parent: int) -> Callable[[], None] | None:
    """Returns a function that a new process calls, to be killed when `parent` dies; None except on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # before the fork: a forked process should do little before exec

    def kill_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(128 + signal.SIGKILL)

    return kill_with_parent


def continue_in_child(on_end: Callable[[int, int], int], on_signal: Callable[[int], None]) -> bool:
    """Forks: the rest of the program runs in the child, and this process waits for its end and exits with its code.

    No code of the user can make this process exit with 0. It passes on each signal that it receives. What the terminal
    sends, such as for Ctrl-C and Ctrl-Z, reaches both processes anyway, since they are in one process group. It also
    forwards the output of the child, which therefore waits for no reader (`forwarding.py`).

    Call it before any thread is started.

    Args:
        on_end: called in this process, after the last output of the child, with the pid and the exit code of the child,
            128 + the signal for a killed one; returns the exit code of this process.
        on_signal: called in this process before it passes on a signal.

    Returns:
        True in the child; False, without a fork, on other systems than Linux, and if the system allows none.
    """
    global _command
    kill_with_parent = kill_with(os.getpid())
    if kill_with_parent is None:
        return False
    from engine.cluster.forwarding import Forwarder  # only here: no process with a launcher needs it

    signals = {int(number) for number in signal.valid_signals() - _NOT_FORWARDED}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # otherwise the kernel may discard how the child ends
    former = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # so that none is lost before the wait below
    try:
        with contextlib.ExitStack() as undo:
            undo.callback(signal.pthread_sigmask, signal.SIG_SETMASK, former)
            forwarder = Forwarder()
            undo.callback(forwarder.close)
            gc.freeze()  # the collector would copy the shared memory of all objects: 20 ms at the end of the child
            child = os.fork()
            undo.pop_all()
    except OSError as error:  # a limit of open files or processes
        reason = error.strerror or error
        output.show(f"warning: no process can wait for this one ({reason}): if its code ends it, nothing tells how.")
        return False
    if child == 0:
        _command = os.getppid()
        kill_with_parent()
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
        forwarder.become()
        return True
    try:
        forwarder.start()
    except RuntimeError:  # which also ends the child, and it would need far more threads
        output.show("no thread can be started: raise the limit of processes of this user or container (ulimit -u).")
        os._exit(ExitStatus.USER_ERROR)
    received: set[int] = set()
    code = _wait(child, signals, received, on_signal)
    is_complete = forwarder.join(lambda: _STOP & (received | signal.sigpending()))
    code = on_end(child, code)
    if not is_complete:  # asked to stop before the reader of the result has read it
        code = code or 128 + min(_STOP & (received | signal.sigpending()))
    output.finish()
    os._exit(code)


def command_pid() -> int:
    """Returns the pid of the process that was started: the parent that waits for this process, or this process."""
    return _command or os.getpid()


def _wait(child: int, signals: set[int], received: set[int], on_signal: Callable[[int], None]) -> int:
    """Passes on signals, and adds them to `received`, until the child has ended; returns its exit code."""
    while True:
        found = signal.sigwaitinfo(signals)
        if found.si_signo == signal.SIGCHLD:
            if (status := _reap(child)) is not None:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            continue
        received.add(found.si_signo)
        # The kernel sends a signal of the terminal to both, and one about a limit for this process only. SIGHUP reaches
        # only the process that leads the session.
        by_kernel = found.si_code == _SI_KERNEL and os.getpgid(child) == os.getpgrp()
        if not by_kernel or found.si_signo == signal.SIGHUP:
            on_signal(found.si_signo)
            os.kill(child, found.si_signo)


def _reap(child: int) -> int | None:
    """Takes in all children that have ended: as process 1 of a container, this process gets those of others too."""
    ended = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        if pid == child:
            ended = status


def call_in_child(work: Callable[[], str]) -> str | None:
    """Calls code of the user in a child, which that code may end; returns its text, or None if it ended the child.

    Raises:
        ChildRaised: `work` raised an error; call it here to get that error.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a thread waits for signals, which holds no lock
        child = os.fork()
    if child == 0:
        try:
            answer = b"=" + work().encode()
        except BaseException:
            answer = b"!"
        sys.stdout.flush()
        os.write(writer, answer)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    if answer == b"!":
        raise ChildRaised
    return answer[1:].decode() if answer else None


class ChildRaised(Exception):
    """The code that `call_in_child` called has raised an error."""
