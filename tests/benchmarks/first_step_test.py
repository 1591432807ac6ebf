"""Starts are timed until the first step: cold ones with an empty compile cache, warm ones with the filled cache.

`all_test.py` starts the real commands.
"""

import sys

import pytest

from benchmarks import first_step

# Takes the place of a training: reports its first step, and prints what its compile cache held.
SCRIPT = """
import os, sys
from pathlib import Path
cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
cache.mkdir(exist_ok=True)
with open(sys.argv[1], "a") as log:
    print(Path(sys.argv[2]).name, "filled" if any(cache.iterdir()) else "empty", file=log)
(cache / "program").touch()
from benchmarks.first_step_hook import report_first_step
report_first_step()
"""


def test_warm_starts_use_the_cache_of_their_cold_start(tmp_path):
    log = tmp_path / "log"
    commands = {
        name: lambda folder: [sys.executable, "-S", "-c", SCRIPT, str(log), str(folder)] for name in ("engine", "bare")
    }
    times = first_step.measure(2, commands)
    assert log.read_text().splitlines() == [
        *("engine-0-cold empty", "bare-0-cold empty", "engine-0-warm filled", "bare-0-warm filled"),
        *("bare-1-cold empty", "engine-1-cold empty", "bare-1-warm filled", "engine-1-warm filled"),
    ]
    assert {kind: len(seconds) for kind, seconds in times.items()} == dict.fromkeys(times, 2)
    assert set(times) == {"engine cold", "bare cold", "engine warm", "bare warm"}
    assert all(0 < s < 60 for seconds in times.values() for s in seconds)


def test_rows_compare_engine_and_bare_script():
    times = {"engine cold": [3.0], "bare cold": [2.0], "engine warm": [1.5, 3.0], "bare warm": [1.0, 1.0]}
    cold, warm, ratio = first_step.rows(times)
    assert cold.values == (3.0,) and "bare script 2.00 s" in cold.note and cold.target == ""
    assert warm.values == (1.5, 3.0) and warm.target == "at most 4 s: met"
    assert ratio.values == (1.5, 3.0) and ratio.target == "at most 1.4: not met"


def test_start_that_fails_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"ended with 1 before its first step: .*no module of that kind"):
        first_step.seconds(
            [sys.executable, "-c", "raise SystemExit('no module of that kind')"], tmp_path, tmp_path / "x"
        )
