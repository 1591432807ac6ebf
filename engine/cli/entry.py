"""The program `convoy` before its imports: Ctrl-C ends it at once, and prints no traceback.

Python raises KeyboardInterrupt from whatever line it is at, and the imports of the engine take most of the time before
`main` can catch it. The first lines of `main.py` call this module too, for `python -m`. It imports nothing else.
"""

import signal
from typing import NoReturn


def end_on_interrupt() -> None:
    """Lets SIGINT end this process, as in a program in C, until `main` sets a handler. A shell then shows code 130."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # it is ignored behind `nohup` or `&`
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # `delay_interrupt` of the program before the restart


def delay_interrupt() -> None:
    """Keeps a SIGINT for the program that replaces this one, until that has called `end_on_interrupt`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def run() -> NoReturn:
    """Runs the command line of this process."""
    end_on_interrupt()
    from engine.cli import main

    main.run()
