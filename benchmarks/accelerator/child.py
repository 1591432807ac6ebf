"""Runs one row in a process of its own: `python -m benchmarks.accelerator.child` with the arguments of `Child`."""

import importlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from benchmarks.accelerator.context import Context, Machine, Skipped
from benchmarks.accelerator.rows import PACKAGE, RowSpec

SKIPPED = 3
"""Exit code of a row that cannot be measured here; the last line of its output is the reason."""


def main() -> None:
    """Runs a row: its function and arguments, the machine, the size, the file for results, and the time limit."""
    arguments = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    spec = RowSpec(*arguments["spec"])
    context = Context(
        Machine(**arguments["machine"]),
        arguments["tiny"],
        Path(arguments["results"]),
        time.monotonic() + arguments["seconds"],
    )
    module, _, name = spec.function.partition(":")
    module = module if "." in module else f"{PACKAGE}.{module}"
    try:
        getattr(importlib.import_module(module), name)(context, *spec.arguments)
    except Skipped as reason:
        print(reason, file=sys.stderr)
        sys.exit(SKIPPED)


def _end_with_parent() -> None:
    """Ends this process and its workers when the parent has ended, so that none of them keeps the device."""
    sys.stdin.read()
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
