"""Runs rows one after the other, each in a process of its own, and collects their results."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.accelerator.child import SKIPPED
from benchmarks.accelerator.context import Machine
from benchmarks.accelerator.rows import RowSpec

POLL_S = 0.2
OK, FAILED, SKIPPED_ROW, STOPPED, NOT_RUN = "ok", "failed", "skipped", "stopped", "not run"


@dataclasses.dataclass
class RowResult:
    """What is known of a row; `lines` are those of its table."""

    name: str
    description: str
    status: str = NOT_RUN
    reason: str = ""  # why the status is not "ok"
    seconds: float = 0.0
    summary: str = ""
    ratio: float | None = None
    lines: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    only_late: bool = True  # whether the time limit is the reason of all problems
    log: str = ""  # the file with the output of a failed row

    def read(self, results: Path) -> bool:
        """Takes in the results of a file; returns whether any is new."""
        before = (len(self.lines), self.summary, len(self.notes), len(self.problems))
        self.lines, self.notes, self.problems, self.only_late = [], [], [], True
        for text in results.read_text().splitlines(keepends=True) if results.exists() else ():
            if not text.endswith("\n"):
                break  # the row is writing it
            entry = json.loads(text)
            if "line" in entry:
                self.lines.append(entry["line"])
            elif "summary" in entry:
                self.summary, self.ratio = entry["summary"], entry["ratio"]
            elif "note" in entry:
                self.notes.append(entry["note"])
            else:
                self.problems.append(entry["problem"])
                self.only_late &= entry["late"]
        return before != (len(self.lines), self.summary, len(self.notes), len(self.problems))


def environment(quick: str = "") -> dict[str, str]:
    """Returns the environment of child processes.

    Memory is allocated as needed, since several processes share the device. The CPU stays a platform, since it computes
    the references.

    Args:
        quick: folder of a compile cache for programs that run for milliseconds, which get few optimizations. Empty:
            every process compiles as usual.
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    env.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    platforms = env.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):
        env["JAX_PLATFORMS"] = f"{platforms},cpu"
    if quick:
        env |= {"JAX_COMPILATION_CACHE_DIR": quick, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    return env


def find_machine(torch: str) -> Machine:
    """Returns the machine. `torch` is an interpreter that has torch, or empty.

    Raises:
        RuntimeError: JAX does not start here.
    """
    command = [sys.executable, "-m", "benchmarks.accelerator.probe", torch]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"JAX does not start here: {last_line(done.stderr)}")
    return Machine(**json.loads(done.stdout.splitlines()[-1]))


def run_rows(
    rows: Mapping[str, RowSpec],
    machine: Machine,
    *,
    tiny: bool,
    row_limit_s: float,
    deadline: float,
    logs: Path,
    changed: Callable[[list[RowResult]], None],
) -> Iterator[RowResult]:
    """Runs rows in order and yields each result as soon as it is complete.

    Args:
        rows: the rows by name.
        machine: the machine.
        tiny: whether sizes are tiny.
        row_limit_s: the longest time of one row.
        deadline: monotonic time at which the row that runs is stopped, and no other starts.
        logs: folder for the output of rows that fail.
        changed: called with all results whenever one has changed.
    """
    found = [RowResult(name, spec.description, reason="has not started") for name, spec in rows.items()]
    changed(found)
    with tempfile.TemporaryDirectory(prefix="convoy-accelerator-cache-", ignore_cleanup_errors=True) as cache:
        env = environment(cache if tiny and machine.platform == "cpu" else "")
        for result, spec in zip(found, rows.values(), strict=True):
            left = deadline - time.monotonic()
            if left <= 0:
                result.reason = "the time limit was reached before"
            else:
                result.status, result.reason = STOPPED, "was running when the command ended"
                changed(found)
                limit = min(row_limit_s, left)
                arguments = {"spec": spec, "machine": dataclasses.asdict(machine), "tiny": tiny, "seconds": limit}
                _run_row(result, arguments, env, left < row_limit_s, logs, lambda: changed(found))
            changed(found)
            yield result


def _run_row(
    result: RowResult,
    arguments: dict[str, Any],
    env: dict[str, str],
    overall: bool,
    logs: Path,
    changed: Callable[[], None],
) -> None:
    """Runs one row to its end or its limit and fills in its result. `overall`: the limit is that of all rows."""
    began, limit_s = time.monotonic(), arguments["seconds"]
    with tempfile.TemporaryDirectory(prefix="convoy-accelerator-", ignore_cleanup_errors=True) as folder:
        results, log = Path(folder) / "results.jsonl", Path(folder) / "log"
        text = json.dumps(arguments | {"results": str(results)})
        command = [sys.executable, "-m", "benchmarks.accelerator.child", text]
        with open(log, "w") as output:
            process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.PIPE,  # its end tells the child that this process has ended
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        timed_out = False
        try:
            while (code := process.poll()) is None and not timed_out:
                time.sleep(POLL_S)
                timed_out = time.monotonic() - began > limit_s
                if result.read(results):
                    result.seconds = time.monotonic() - began
                    changed()
        finally:
            _end(process)
        result.read(results)
        result.seconds = time.monotonic() - began
        output_text = log.read_text(errors="replace")
        if timed_out:
            what = "the time limit of all rows" if overall else f"the limit of a row, {limit_s:.0f} s,"
            result.status, result.reason = (STOPPED if overall else FAILED), f"{what} was reached"
        elif code == SKIPPED:
            result.status, result.reason = SKIPPED_ROW, last_line(output_text)
        elif code:
            result.status, result.reason = FAILED, _reason(code, output_text)
        elif result.problems:
            result.status = STOPPED if overall and result.only_late else FAILED
            result.reason = "; ".join(result.problems)
        else:
            result.status, result.reason = OK, ""
        if result.status in (FAILED, STOPPED):
            logs.mkdir(parents=True, exist_ok=True)
            kept = logs / f"{result.name}.log"
            kept.write_text(output_text)
            result.log = str(kept)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a row and its workers, and waits for it."""
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _reason(code: int, output: str) -> str:
    """Returns why a row failed: the last line of its output, or the signal that ended it."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}; last line: {last_line(output)}"
    return last_line(output)


def last_line(text: str) -> str:
    """Returns the last line that is not blank and no advice of JAX about its traceback, at most 300 characters."""
    lines = [line.strip() for line in text.splitlines()]
    useful = [line for line in lines if line.strip("-") and not line.startswith("For simplicity, JAX has removed")]
    return useful[-1][:300] if useful else "no output"
