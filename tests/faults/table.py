"""The table of faults: the cases, the stored results of each test, and the page of the docs that is made from both.

    python -m pytest tests/faults --store-rows      # stores the rows of the tests that ran, and writes the page
    python -m tests.faults.table                    # writes the page after a change of the texts below

A test that passes with other rows than the stored ones (another exit code, or no longer bitwise) fails.
"""

import contextlib
import dataclasses
import fcntl
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

SECTIONS: Mapping[str, Mapping[str, str]] = {
    "A process ends or stops": {
        "a worker is killed": "The other processes end within seconds, and the launcher ends with the code of the "
        "signal. A restart resumes from the newest checkpoint, on the same bits.",
        "the primary is killed": "As for any other process. `status.json` is completed by the launcher.",
        "all processes are killed": "A restart resumes from the newest complete checkpoint.",
        "a process is stopped": "A pause of a few seconds is tolerated. A longer one ends all processes, with a "
        "sentence that names the process. A launcher on the same machine names a stopped process after 6 seconds and "
        "ends it after 30, unless all processes of the job are stopped.",
        "the network is cut": "A cut that heals within the heartbeat timeout is tolerated. A longer one ends each "
        "process with a sentence and 42.",
        "a slow process": "A process that is persistently slower than the others is named, with what it waits for, in "
        "the log, in `status.json` and in `convoy goodput`.",
        "a data source hangs": "The watchdog (`resilience.hang`) prints the stacks of all threads, names the process "
        "and ends the run.",
        "a loop that its caller leaves": "A program that iterates over `Trainer.train` may take any time between two "
        "boundaries: this is no hang. Steps have their timeout again once the loop continues.",
        "a thread of the engine fails": "A thread that a run depends on, such as the one that renews the lease, ends "
        "the run with its reason and 42.",
        "an exception in one process": "All processes end. The error is printed once.",
        "exits of the user's code": "`sys.exit` in a loss, a dataset or a hook is an error with the line of the code. "
        "Exit code 0 is given only after `status.json` states `done`. A launcher believes no other 0.",
        "output that goes away": "A closed pipe or terminal, or a full disk behind it, does not end the run. The run "
        "continues silently, and its log says so.",
        "output that nobody reads": "A reader that does not read (Ctrl-S, a stuck log shipper) blocks nothing: what "
        "does not fit is dropped from the screen and counted in the log. Only the result of a command waits, until "
        "SIGTERM.",
        "repeated kills under a supervisor": "`convoy supervise` restarts the run until it is done. Each step is "
        "counted once.",
        "a crash at the same step": "The supervisor ends after the third failure with the same signature at the same "
        "step, and names the failure.",
        "out of memory": "The error names the process that the kernel killed and how to need less memory. A limit of "
        "virtual memory (`ulimit -v`) that is too low for JAX is refused with the numbers.",
    },
    "A request to stop": {
        "SIGTERM": "The run saves a checkpoint at the next boundary and ends with 42, also while it waits for input "
        "or evaluates.",
        "SIGTERM before the first step": "While a run traces, compiles, restores or reads its first batch, a thread "
        "ends it within seconds with 42.",
        "a second signal": "All processes end at once. The newest complete checkpoint stays.",
        "SIGINT": "As for SIGTERM, with exit code 130, which is not restarted.",
    },
    "The start of a run": {
        "processes that do not start": "The processes that did start end after the timeout and name the missing ones, "
        "with the pid, node or pod where that is known. With a launcher on the same machine, a process that ends with "
        "0 before it has joined ends the job at once.",
        "a process that comes late": "The others wait before the first collective until all have come, for up to ten "
        "minutes. Collectives between CPUs alone would end this wait after 30 s.",
        "two processes with one index": "Both end with a sentence that names the index and the hosts.",
        "the coordinator's port is taken": "The launcher says so at once.",
        "a typo in the config": "The error names the field, the file and the nearest valid name before devices start.",
        "a mesh that does not divide": "The error names the parameter or the batch, the axis, and sizes that divide.",
        "sizes beyond the memory": "Batches and states that cannot fit into the memory of the host, its container or a "
        "device are refused with the numbers before anything is allocated.",
        "processes started differently": "Processes whose config, code or libraries differ are refused, with the "
        "differences.",
        "a directory that cannot be written": "The run is refused before its first step.",
    },
    "Checkpoints and storage": {
        "kills during saves": "A checkpoint counts only once all of its files and its manifest are complete.",
        "a truncated shard": "The checkpoint is reported and set aside. The run resumes from the one before it.",
        "a flipped bit on disk": "Each array and file has a hash in the manifest. The checkpoint is set aside.",
        "missing checkpoint files": "The checkpoint is set aside.",
        "no usable checkpoint": "The run ends with a list of the checkpoints and what is wrong with each. It never "
        "starts again from step 0 by itself.",
        "a full disk": "The failed save is reported and its files are removed. Training continues, and the next save "
        "is tried, unless `checkpoint.on_failure=stop`.",
        "slow storage": "Saves that would overlap are skipped, with a message. Training continues.",
        "hanging storage": "A save that exceeds `checkpoint.timeout` is abandoned and training continues. A process "
        "ends in time even while a thread is blocked on storage.",
        "deletion of old checkpoints": "A step is deleted only after a newer one is complete, and never while it is "
        "read.",
        "a run directory that goes away": "The run notices within seconds that its directory was moved or removed, and "
        "ends with 43 and the new path: the same command would begin at step 0.",
        "damaged files of a run": "A verb names the damaged file and what is wrong in it, or skips damaged lines and "
        "counts them. A followed run is evaluated without its damaged steps.",
        "files of killed processes": "The next process that writes the same file removes them, but none of a process "
        "that may be alive.",
        "two jobs in one directory": "The second job is refused as long as the first one renews its lease. A job that "
        "wakes after it was replaced ends without a write.",
    },
    "Another program than before": {
        "other processes and another mesh": "The run resumes on other meshes and process counts, with the same "
        "examples in the same order.",
        "another model at resume": "The error shows which parameters differ. A warm start copies the ones named.",
        "another dataset at resume": "The error names what differs. `--accept-data-change` continues all the same.",
    },
    "Data": {
        "bad records": "`data.on_error=stop` names the record and the file. `skip` gives the example weight 0, logs "
        "it, and ends the run if there are too many.",
        "data workers that fail": "A worker that is killed or frozen ends the run with 42 within seconds and is named. "
        "No worker and no shared memory remains.",
    },
    "Numbers and clocks": {
        "losses that are not finite or spike": "`resilience` decides: stop, skip the update, or roll back to the "
        "newest checkpoint and skip the batches. No checkpoint holds the bad update.",
        "a bit flip in memory": "The replica check finds copies of a parameter that differ before they are saved.",
        "a device that computes wrong": "With `resilience.gradient_check`, a neighbour computes the gradient of each "
        "device again, from the same parameters and rows, and the bits are compared. The message names the device.",
        "clocks that jump or differ": "Time limits use monotonic clocks. Leases do not compare the clocks of hosts.",
    },
}
"""Section of the page -> case -> what Convoy does."""

CASES = tuple(case for cases in SECTIONS.values() for case in cases)
ROWS = Path(__file__).with_name("rows.json")
PAGE = Path(__file__).parents[2] / "docs" / "what-can-go-wrong.md"

_HEAD = """# What can go wrong, and what Convoy does

This page lists the faults that the test suite injects into real runs: killed processes, damaged files, full disks,
wrong clocks. It is generated from the results of these tests (`tests/faults/table.py`). The suite fails if an exit code
or the column *same bits* changes.

- *Detected*: seconds from the fault to the end of the run or to the message about it. *Resumed*: seconds from the
  restart to the first new step. Both are single measurements on a small machine with 2 cores, under the load of other
  tests.
- *Repeated*: steps that had to be computed again.
- *Same bits*: losses, final state and examples equal those of an undisturbed run bit for bit.
- *Exit*: the exit code of the run, or of the run that resumed it. [Restarts](restarts.md) explains the codes.
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """Results of one test; None in a column that the test does not measure."""

    test: str  # its id
    case: str
    what: str
    detected_s: float | None = None  # from the fault to the exit, or to the message about it
    recovered_s: float | None = None  # from the restart to the first new step
    lost: int | None = None  # steps that were computed again
    bitwise: bool | None = None  # losses, state and examples equal those of the undisturbed run
    code: int | None = None  # exit code of the job
    note: str = ""  # why this machine could not show it

    def agrees(self, stored: "Row") -> bool:
        """Whether the results that do not depend on the machine are the stored ones."""
        return (self.case, self.bitwise, self.code) == (stored.case, stored.bitwise, stored.code)


def read_rows(path: Path = ROWS) -> list[Row]:
    """Returns the stored rows."""
    return [Row(**row) for row in json.loads(path.read_text())] if path.exists() else []


def store_rows(rows: Sequence[Row]) -> None:
    """Replaces the stored rows of the tests in `rows`, and writes the page. Several processes may do so at once."""
    tests = {row.test for row in rows}
    with _locked():
        kept = [row for row in read_rows() if row.test not in tests and row.case in CASES]
        merged = sorted([*kept, *rows], key=lambda row: (CASES.index(row.case), row.test))
        fields = [dataclasses.asdict(dataclasses.replace(row, **_rounded(row))) for row in merged]
        ROWS.write_text("[\n" + ",\n".join(json.dumps(row) for row in fields) + "\n]\n")
        PAGE.write_text(page(read_rows()))


def difference(test: str, rows: Sequence[Row]) -> str:
    """Returns why the rows of a test are not the stored ones, or an empty text."""
    stored = [row for row in read_rows() if row.test == test]
    if any(row.note for row in (*rows, *stored)):  # this machine, or that of the stored rows, could not show it
        return ""
    if len(rows) == len(stored) and all(map(Row.agrees, rows, stored)):
        return ""
    return (
        f"{test} gave other rows than {ROWS.name} has. If this is right, store them: "
        f"python -m pytest '{test}' --store-rows\nstored: {stored}\nfound: {list(rows)}"
    )


def page(rows: Iterable[Row]) -> str:
    """Returns the page as Markdown."""
    by_case: dict[str, list[Row]] = {case: [] for case in CASES}
    for row in rows:
        by_case[row.case].append(row)
    lines = [_HEAD]
    for section, cases in SECTIONS.items():
        lines += [f"## {section}", ""]
        for case, what in cases.items():
            lines += [f"### {case[0].upper()}{case[1:]}", "", *_wrapped(what), ""]
            lines += ["| fault | detected | resumed | repeated | same bits | exit |", "|---|---|---|---|---|---|"]
            lines += [f"| {' | '.join(cells(row))} |" for row in by_case[case]]
            lines.append("")
    return "\n".join(lines)


def cells(row: Row) -> tuple[str, ...]:
    """Returns the texts of a row, without its case."""
    seconds = ["" if s is None else f"{s:.1f} s" for s in (row.detected_s, row.recovered_s)]
    bitwise = "" if row.bitwise is None else "yes" if row.bitwise else "no"
    lost, code = ("" if value is None else str(value) for value in (row.lost, row.code))
    what = f"{row.what} (not shown: {row.note})" if row.note else row.what
    return what, *seconds, lost, bitwise, code


def _rounded(row: Row) -> dict[str, float]:
    """The seconds of a row, with one decimal place."""
    seconds = {"detected_s": row.detected_s, "recovered_s": row.recovered_s}
    return {name: math.ceil(10 * value) / 10 for name, value in seconds.items() if value is not None}


def _wrapped(text: str, width: int = 120) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    with open(__file__) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    store_rows([])
