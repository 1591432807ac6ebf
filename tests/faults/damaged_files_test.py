"""Damaged files of a run and files of killed processes: verbs name the first, and remove their own of the second."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.cli.main import main
from tests import runs
from tests.faults import fuzz

pytestmark = [pytest.mark.faults, pytest.mark.slow]

CASES = 40
CHEAP = ("config", "checkpoints", "verify", "goodput", "plans", "export")
KILLED_EXPORT = """
import resource, signal, sys
import safetensors.numpy
from engine.cli.main import main

def save(arrays, path, metadata=None, save_file=safetensors.numpy.save_file):
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel kills the process at the first byte above the limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    save_file(arrays, path, metadata)

safetensors.numpy.save_file = save
main(["export", sys.argv[1], f"--out={sys.argv[2]}"])
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fuzz.make_run(tmp_path_factory.mktemp("damaged") / "run", optimizer__target="optax.adamw")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.case("damaged files of a run")
def test_random_damage_is_named_or_changes_nothing(trained, add_row):
    """`python -m tests.faults.fuzz --cases 2000` runs more of these, also on the verbs that compile."""
    verbs = {name: fuzz.VERBS[name] for name in CHEAP}
    expected = fuzz.undamaged(trained, verbs)
    for case in fuzz.cases(trained, CASES, 1, verbs):
        wrong, found = fuzz.check(trained, case, expected)
        assert not wrong, f"{case}: {wrong}\n{found.printed}{found.messages}"
    add_row("random damage of random files, then a verb that reads them")


@pytest.mark.case("damaged files of a run")
def test_followed_run_goes_on_after_a_damaged_step(run, add_row, capsys):
    """Its process has ended, so that the follower waits for a change of the run until its time is over."""
    shard = max((run / "checkpoints/2/state/d").iterdir(), key=lambda path: path.stat().st_size)
    shard.write_bytes(b"x" * shard.stat().st_size)
    (run / "evaluations.jsonl").unlink()
    assert main(["evaluate", str(run), "--follow"]) == 43
    printed, said = capsys.readouterr()
    assert "step: 4\n" in printed and "step: 2\n" not in printed
    assert said.splitlines()[0].startswith("step 2 is left out, since it is damaged: state/d/")
    assert "the run is done at step 4, and its checkpoints are evaluated except for damaged ones: step 2." in said
    add_row("a shard of an old step under evaluate --follow", code=43)


@pytest.mark.case("damaged files of a run")
def test_cut_plan_is_not_a_run_that_was_too_short(run, add_row, capsys):
    plan = run / "plan.json"
    plan.write_text(plan.read_text()[:200])
    assert main(["plan", f"--runs={run}"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{plan}: is damaged (Expecting ") and "No attempt has trained" not in printed
    add_row("plan.json is cut", code=0)


@pytest.mark.case("damaged files of a run")
def test_damaged_lines_of_the_ledger_are_counted(run, add_row, capsys):
    lines = (run / "goodput.jsonl").read_bytes().splitlines(keepends=True)
    entry = json.loads(lines[0])
    lines[0] = json.dumps({**entry, "seconds": 0}).replace('"seconds": 0', '"seconds": 1e999').encode() + b"\n"
    (run / "goodput.jsonl").write_bytes(b"".join(lines) + b'{"kind": "step", "sec')
    assert main(["goodput", str(run)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"warning: {run}/goodput.jsonl: skipped 2 damaged lines, the first is line 1: 1e999 is no")
    add_row("1e999 and a cut line in goodput.jsonl", code=0)


@pytest.mark.case("files of killed processes")
@pytest.mark.multiprocess
def test_next_export_removes_what_a_killed_one_has_left(run, tmp_path, add_row):
    out = tmp_path / "model.safetensors"
    words = [sys.executable, "-c", KILLED_EXPORT, str(run), str(out)]
    assert subprocess.run(words, env=runs.environment(), timeout=300, check=False).returncode == -signal.SIGXFSZ
    [left] = tmp_path.glob(".model.safetensors.*.tmp")
    with subprocess.Popen(["sleep", "300"]) as other:
        machine, boot, *_ = left.name.split(".")[3].split("-")
        ticks = Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19]
        living = tmp_path / f".model.safetensors.{machine}-{boot}-{other.pid}-{ticks}-0.tmp"
        elsewhere = tmp_path / f".model.safetensors.{'0' * 8}-{boot}-{left.name.split('-')[2]}-{ticks}-0.tmp"
        for path in (living, elsewhere):
            path.touch()
        begin = time.monotonic()
        assert main(["export", str(run), f"--out={out}"]) == 0
        took = time.monotonic() - begin
        other.kill()
    beside = {Path(f"{out}.{name}") for name in ("MODEL_CARD.md", "lineage.json")}
    assert set(tmp_path.iterdir()) == {run, out, living, elsewhere} | beside
    assert os.path.getsize(out) > 1000
    add_row("SIGXFSZ during an export, then another export", detected_s=took, code=0)
