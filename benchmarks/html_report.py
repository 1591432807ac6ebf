"""Measures the report of long runs: how large the file is, and how long it takes to write it and to open it.

tools/bazel run //benchmarks:html_report [-- --runs 10 --rows-of-each 100000]
python -m benchmarks.html_report

The runs are made, not trained: each has rows with the metrics that a run of the engine writes, with noise, so that no
point equals its neighbour. The page is opened in headless Chromium with an empty cache; without a browser that time is
left out.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import browser, report
from benchmarks.report import Row

RUNS, ROWS = 10, 100_000
MOST_BYTES, MOST_S = 5e6, 2.0
MEASURED = ("loss", "box", "heat", "accuracy", "grad_norm", "learning_rate", "examples_per_s", "step_time_s",
            "data_wait", "data_read_s", "data_decode_s", "data_collate_s", "data_transfer_s", "flop_per_s", "mfu",
            "host_rss_gib", "device_peak_gib")  # fmt: skip
"""Metrics of each row."""
CONFIG = """\
train.seed: {seed}
train.total: {rows} steps
optimizer.learning_rate: {rate}
checkpoint.best: heldout/accuracy
"""


def make_run(folder: Path, rows: int, number: int) -> None:
    """Writes a run directory with `rows` rows of training, and an evaluation after each hundredth part."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(number)
    (folder / "config.txt").write_text(CONFIG.format(seed=number % 3, rows=rows, rate=0.001 * (1 + number // 3)))
    (folder / "status.json").write_text(
        json.dumps({"state": "done", "step": rows, "total_steps": rows, "attempt": 1, "host": "a", "pid": 1,
                    "started": "2026-01-01T00:00:00+00:00", "metrics": {"heldout/accuracy": 0.9}})
    )  # fmt: skip
    with open(folder / "metrics.jsonl", "w") as file:
        for first in range(0, rows, 10_000):
            steps = np.arange(first + 1, min(first + 10_000, rows) + 1)
            noise = np.exp(random.normal(0, 0.3, (len(steps), len(MEASURED)))) * (1 + 50 / steps[:, None] ** 0.5)
            for step, values in zip(steps.tolist(), noise.tolist(), strict=True):
                row = {"step": step, "attempt": 1, "batch": step - 1, "time": 1.7e9 + 0.25 * step}
                file.write(json.dumps(row | dict(zip(MEASURED, values, strict=True))) + "\n")
                if step % max(1, rows // 100) == 0:
                    found = {"heldout/loss": values[0], "heldout/accuracy": 1 - 1 / (1 + step)}
                    file.write(json.dumps({"step": step, "attempt": 1, "time": row["time"], **found}) + "\n")


def seconds_to_open(file: Path, folder: Path, turns: int) -> list[float]:
    """Returns the seconds from the begin of the navigation until the page is ready, with its first charts drawn."""
    found = []
    for turn in range(turns):
        with browser.page(folder / str(turn)) as page:
            page.view(1280, 900)
            start = time.monotonic()
            page.open(file)
            page.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            page.place(".chart")
            page.wait("document.querySelector('.chart canvas')")
            found.append(time.monotonic() - start)
            if page.problems:
                raise RuntimeError("; ".join(page.problems))
    return found


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Makes the runs, and yields a row for each measurement."""
    from engine.report.page import write_report

    with tempfile.TemporaryDirectory(prefix="convoy-report-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        runs = [folder / f"run-{number}" for number in range(args.runs)]
        for number, each in enumerate(runs):
            report.progress(f"making run {number + 1} of {args.runs}")
            make_run(each, args.rows_of_each, number)
        what, file = f"report of {args.runs} runs of {args.rows_of_each:,} rows", folder / "report.html"
        start = time.monotonic()
        write_report(runs, file)
        yield Row(f"{what}, time to write it", (time.monotonic() - start,), "s", digits=1)
        size = file.stat().st_size
        yield Row(f"{what}, size", (size / 1e6,), "MB", at_most=MOST_BYTES / 1e6)
        if browser.program() is not None:
            found = seconds_to_open(file, folder / "browser", args.turns)
            yield Row(f"{what}, time to open it", tuple(found), "s", at_most=MOST_S)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the benchmark."""
    parser.add_argument("--runs", type=int, default=RUNS, help=f"number of runs (default: {RUNS})")
    parser.add_argument("--rows-of-each", type=int, default=ROWS, help=f"rows of a run (default: {ROWS:,})")
    parser.add_argument("--turns", type=int, default=3, help="how often the page is opened (default: 3)")


if __name__ == "__main__":
    report.main(__doc__, add_arguments, run, tiny=("--runs", "2", "--rows-of-each", "300", "--turns", "1"))
