"""The accelerator benchmark at tiny sizes, and its table when rows fail, take too long, or the command is killed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.accelerator import __main__ as command
from benchmarks.accelerator import first_weights, models, runner
from benchmarks.accelerator.context import Machine
from benchmarks.accelerator.plain_models import first_weight
from benchmarks.accelerator.rows import ROWS, RowSpec
from convoy_zoo.models.decoder import LanguageModel
from convoy_zoo.models.moe_decoder import MoeLanguageModel
from convoy_zoo.models.vit import Vit
from tests import runs, zoo

MACHINE = Machine("cpu", "cpu", 1, 0, "", "not installed", "jax")
OPTIONAL = {"data": "Pillow, which decodes JPEG, is not installed"}
"""Rows that a machine may lack a package for."""


def row(function: str) -> RowSpec:
    return RowSpec(f"a row that {function}", f"tests.benchmarks.accelerator_rows:{function}")


def run_rows(tmp_path: Path, *functions: str, limit: float = 60, row_limit: float = 60) -> dict[str, runner.RowResult]:
    """Runs rows and returns the result of each by the name of its function."""
    found = runner.run_rows(
        {function: row(function) for function in functions},
        MACHINE,
        tiny=True,
        row_limit_s=row_limit,
        deadline=time.monotonic() + limit,
        logs=tmp_path / "logs",
        changed=lambda results: None,
    )
    return {result.name: result for result in found}


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the rows of a JSON file by name."""
    return {found["name"]: found for found in json.loads(path.read_text())["rows"]}


SAME_TINY = {"decoder-350m", "decoder-1b"}
"""Rows that are the row of decoder-125m at tiny sizes: on a CPU, also their loops take turns."""


@pytest.mark.parametrize(("name", "task"), [("decoder-125m", LanguageModel), ("moe", MoeLanguageModel), ("vit", Vit)])
def test_closed_formula_of_flops_is_the_count_of_the_engine(name, task):
    """Up to norms and biases, the router's loss, and the gradient of the images, which together are below 1 %."""
    model = models.model(name, tiny=False)
    if isinstance(model, models.Decoder):
        names = {
            "tokens": "int32",
            "targets": "int32",
            "positions": "int32",
            "segment_ids": "int32",
            "weight": "float32",
        }
        example = {key: jax.ShapeDtypeStruct((model.time,), dtype) for key, dtype in names.items()}
    else:
        assert isinstance(model, models.Vit)
        image = jax.ShapeDtypeStruct((model.size, model.size), "uint8")
        example = {"image": image, "label": jax.ShapeDtypeStruct((), "int32")}
    program = zoo.program(task(**model.arguments), batch_size=model.batch, example=example)
    assert program.flops_per_step == pytest.approx(model.flops_per_step, rel=0.01)


def test_larger_decoders_have_the_tiny_size_of_the_smallest():
    for name in SAME_TINY:
        tiny, larger = models.model("decoder-125m", tiny=True), models.model(name, tiny=True)
        assert dataclasses.replace(larger, together=True) == tiny
        assert ROWS[name]._replace(description="", arguments=()) == ROWS["decoder-125m"]._replace(
            description="", arguments=()
        )
        assert ROWS[name].arguments == (name,) and models.model(name, tiny=False).parameters > 3e8


@pytest.mark.slow
@pytest.mark.multiprocess
def test_tiny_run_measures_every_row(tmp_path):
    """The rows "fsdp" and "decoder-packed" train the model of "decoder-125m", without segments and with them."""
    without = {*SAME_TINY, "decoder-125m"}
    file, names = tmp_path / "tiny.json", [name for name in ROWS if name not in without]
    words = [sys.executable, "-m", "benchmarks.accelerator", "--tiny", f"--json={file}", f"--rows={','.join(names)}"]
    done = runs.run(words, env=runs.environment(JAX_NUM_CPU_DEVICES="2", **runs.COMPILING), timeout=900)
    rows = read(file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(rows) == names
    for name, found in rows.items():
        if found["status"] == runner.SKIPPED_ROW:
            assert found["reason"] == OPTIONAL.get(name), name
        else:
            assert found["status"] == runner.OK, name
            assert found["summary"] and found["lines"], name
    text = file.with_suffix(".txt").read_text()
    assert all(f"\n{name} " in text for name in rows)
    lines = {line["name"]: line for line in rows["vit"]["lines"]}
    assert list(lines) == ["engine", "plain JAX", "PyTorch"]
    assert lines["engine"]["images/s"] > 0 and lines["PyTorch"]["step_ms"] == "not installed"
    assert next(line for line in rows["decoder-packed"]["lines"] if line["name"] == "engine")["tokens/s"] > 0
    assert rows["vit"]["ratio"] > 0


def test_row_that_fails_says_why_and_the_others_run(tmp_path):
    found = run_rows(tmp_path, "fails", "is_wrong", "is_skipped", "works")
    assert found["fails"].status == runner.FAILED
    assert found["fails"].reason == "RuntimeError: the kernel is broken"
    assert found["fails"].lines == [{"name": "engine", "step_ms": [1.0]}]
    assert "the kernel is broken" in Path(found["fails"].log).read_text()
    assert (found["is_wrong"].status, found["is_wrong"].reason) == (runner.FAILED, "wrong: causal")
    assert found["is_wrong"].lines
    assert (found["is_skipped"].status, found["is_skipped"].reason) == (runner.SKIPPED_ROW, "one device")
    assert (found["works"].status, found["works"].ratio) == (runner.OK, 0.9)


def test_row_that_takes_too_long_fails_and_keeps_its_lines(tmp_path):
    limit = runs.limit(8)  # also the start of a process must fit
    found = run_rows(tmp_path, "takes_long", "works", limit=4 * limit, row_limit=limit)
    assert found["takes_long"].status == runner.FAILED
    assert found["takes_long"].reason == f"the limit of a row, {limit:.0f} s, was reached"
    assert found["takes_long"].lines == [{"name": "engine", "step_ms": [4.0]}]
    assert found["works"].status == runner.OK


def test_lack_of_time_is_a_failure_only_under_the_limit_of_a_row(tmp_path):
    assert run_rows(tmp_path, "is_late", limit=60, row_limit=30)["is_late"].status == runner.FAILED
    assert run_rows(tmp_path, "is_late", "is_wrong", limit=60, row_limit=90)["is_late"].status == runner.STOPPED


def test_time_limit_leaves_a_partial_table(tmp_path, capsys):
    file = tmp_path / "results" / "a.json"
    functions = ("works", "takes_long", "fails")
    limit = f"--limit={runs.limit(12):.0f}"
    code = command.main([f"--json={file}", limit], {function: row(function) for function in functions})
    rows, text = read(file), file.with_suffix(".txt").read_text()
    assert code == 0
    assert [rows[name]["status"] for name in functions] == [runner.OK, runner.STOPPED, runner.NOT_RUN]
    assert rows["takes_long"]["lines"] == [{"name": "engine", "step_ms": [4.0]}]
    assert "works       step time 0.900 of plain JAX (" in text
    assert "  engine  2 (1-3)\n" in text
    assert "fails       not run: the time limit was reached before" in text
    assert text in capsys.readouterr().out


@pytest.mark.multiprocess
def test_killed_command_leaves_its_results_and_no_process(tmp_path):
    file = tmp_path / "a.json"
    script = (
        "from benchmarks.accelerator.__main__ import main; from tests.benchmarks.accelerator_test import row; "
        f"main(['--json={file}'], {{'works': row('works'), 'takes_long': row('takes_long')}})"
    )
    process = subprocess.Popen([sys.executable, "-c", script], env=runs.environment(), stdout=subprocess.DEVNULL)
    wait_for(lambda: file.exists() and read(file)["takes_long"]["lines"])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert children
    wait_for(lambda: not any(map(is_running, children)))
    rows = read(file)
    assert rows["works"]["status"] == runner.OK
    assert rows["takes_long"]["status"] == runner.STOPPED
    assert not list(tmp_path.glob("*.new"))


def is_running(pid: str) -> bool:
    """Whether a process is running; a container may keep orphans as zombies."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Any, seconds: float = 180) -> None:
    """Waits until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_unknown_row_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["--rows=decoder-7b"])
    assert "--rows: decoder-7b is unknown. Rows: attention, layers, " in capsys.readouterr().err


def test_list_names_every_row(capsys):
    assert command.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ROWS)


def test_first_weights_are_the_same_in_numpy_and_jax():
    bits = first_weights.random_bits("embed/table", 1000)
    expected = ((bits >> 8).astype(np.float32) * np.float32(2**-23) - 1) * np.float32(first_weights.factor(0.02))
    found = first_weight("embed/table", (10, 100), 0.02)
    np.testing.assert_array_equal(found.ravel(), expected)
    assert found.dtype == jnp.float32
    assert 0.019 < float(found.std()) < 0.021


def test_environment_keeps_the_cpu_as_a_platform(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert runner.environment()["JAX_PLATFORMS"] == "cuda,cpu"
    assert os.environ["JAX_PLATFORMS"] == "cuda"
