"""Runs whose groups are frozen until a step: what is trained when, resumes at the change, messages and errors."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import engine
from engine.api import prepared
from engine.api.compile import precompile
from engine.api.saved_run import SavedRun
from engine.api.train import _check_not_stopped
from engine.base.errors import ConfigError
from engine.config.schema import Config
from engine.loop.events.save import Rebuild
from engine.loop.preemption import Preempted, Preemption
from engine.run.directory import RunDirectory
from tests import runs, zoo

HEAD, ALL = 8 * 4 + 4, 244  # numbers of the head, and of all layers
BODY = dict(match="^hidden/", frozen_until="3 steps", warmup="1 step", layer_decay=0.5)
SETTINGS: dict[str, Any] = dict(
    task__width=8, train__total="6 steps", train__ema_decay=0.5, train__precision="bfloat16",
    mesh__data=8, sharding__zero1=True, optimizer__groups__body=BODY,
    checkpoint__every="2 steps", checkpoint__keep_latest=9,
)  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The config of a run that loads its programs from a folder."""
    folder = tmp_path_factory.mktemp("programs") / "programs"
    names = [each.name for each in precompile(runs.config(**SETTINGS), out=folder)]
    later = ["optimizer state of init.checkpoint from step 3", "step from step 3"]
    assert names == ["first state", "step", "evaluation heldout", *later]
    return runs.config(**SETTINGS, cache__programs=str(folder))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """An uninterrupted run, over eight devices with ZeRO-1; its body is trained from step 3 on."""
    path = tmp_path_factory.mktemp("whole") / "run"
    engine.train(config, workdir=path)
    return path


@pytest.fixture(scope="module")
def programs():
    """The programs before and after the change."""
    found = prepared.prepare(runs.config(**SETTINGS))
    return [found.build_program(step=step)[0] for step in (2, 3)]


def state_of(path, step, program):
    return SavedRun(path).restore(step, program)


def test_frozen_group_has_no_gradient_and_no_optimizer_state(programs):
    before, after = programs
    for program, count in ((before, HEAD), (after, ALL)):
        moments = [x.size for x in jax.tree.leaves(program.abstract_state.opt_state) if x.ndim]
        assert sum(moments) == 2 * count  # the two moments of Adam
        program.trace(1)
    assert before.hardware_flops_per_step < 0.6 * after.hardware_flops_per_step
    assert before.flops_per_step < after.flops_per_step


def test_body_is_constant_until_the_step_and_then_trained(whole, programs):
    evaluation = programs[1].evaluation
    weights = {step: SavedRun(whole).weights(step, evaluation) for step in (2, 3, 4, 6)}
    kernel = {step: np.asarray(x.params["hidden/0/kernel"]) for step, x in weights.items()}
    head = {step: np.asarray(x.params["head/kernel"]) for step, x in weights.items()}
    np.testing.assert_array_equal(kernel[2], kernel[3])
    np.testing.assert_array_equal(kernel[3], kernel[4])  # the first step of its warm-up
    moved = np.abs(kernel[6] - kernel[4])
    assert 0 < moved.max() < 2 * 0.01 * 0.25 * 1.5  # two steps of Adam with the rate of the lowest of two layers
    assert np.abs(head[3] - head[2]).max() > 0
    ema = weights[2].ema
    assert ema is not None
    np.testing.assert_array_equal(ema["hidden/0/kernel"], kernel[2])  # what evaluations and exports read
    rates = runs.rows(whole, "learning_rate/body")
    assert [rates[step] for step in (1, 2, 3, 4)] == [0, 0, 0, 0]
    assert (rates[5], rates[6]) == (pytest.approx(0.01), pytest.approx(0.005))  # to 0 in the three steps that are left


def test_other_optimizer_state_continues_at_the_change(whole, programs):
    before, after = programs
    counts = {}
    for step, program in ((3, before), (6, after)):
        leaves = jax.tree.leaves_with_path(state_of(whole, step, program).opt_state)
        counts[step] = {jax.tree_util.keystr(path): int(x) for path, x in leaves if not x.ndim}
    assert set(counts[3].values()) == {3}
    assert {path for path in counts[6] if path not in counts[3]} == {path for path in counts[6] if "'body'" in path}
    assert {counts[6][path] for path in counts[3]} == {6}
    assert {counts[6][path] for path in counts[6].keys() - counts[3].keys()} == {3}


def resumed(config: Config, whole: Path, path: Path, step: int, damaged: tuple[int, ...]) -> Path:
    """Returns a copy of a run that has lost what came after a step, and was started again."""
    shutil.copytree(whole, path)
    for one in (4, 6, 3):
        if one > step and one not in damaged:
            shutil.rmtree(path / f"checkpoints/{one}")
    for one in damaged:
        file = max((path / f"checkpoints/{one}").rglob("*"), key=lambda file: file.stat().st_size)
        file.write_bytes(file.read_bytes()[:-1])
    assert engine.train(config, workdir=path).step == 6
    return path


@pytest.mark.parametrize(("step", "damaged"), [(2, (3, 4)), (3, ()), (4, ())])
def test_resume_before_at_and_after_the_change_is_bitwise_equal(config, whole, programs, tmp_path, step, damaged):
    """In the first case, the run finds damaged checkpoints of the other interval before the one it can use."""
    path = resumed(config, whole, tmp_path / "run", step, damaged)
    zoo.assert_equal(state_of(path, 6, programs[1]), state_of(whole, 6, programs[1]))
    assert runs.rows(path) == runs.rows(whole)


def test_start_and_change_say_what_is_trained(whole):
    lines = [line.partition("Z ")[2] for line in (whole / "log.txt").read_text().splitlines()]
    first = lines.index("optimizer.groups.body: 208 parameters are frozen until step 3 (3 steps)")
    assert lines[first - 1] == "until step 3 the run trains 36 of 244 parameters; frozen: hidden (208)"
    change = lines.index("optimizer.groups.body: 208 parameters are trained from step 3 on, with a new optimizer state")
    assert lines.index("saving checkpoint of step 3") < change < lines.index("saving checkpoint of step 4")
    assert not [line for line in lines if "program 'step" in line]  # which the run then compiles itself


def test_explain_lists_the_intervals(programs):
    assert programs[0].spec.optimizer.details[-2:] == (
        "step 0 to step 2: 36 of 244 numbers are trained; frozen: body",
        "step 3 to the last one: 244 of 244 numbers are trained",
    )


def settings(**group: Any) -> dict[str, Any]:
    return dict(task__width=8, optimizer__groups__body={**BODY, **group})


def test_group_that_is_never_trained_is_reported():
    program, _ = prepared.prepare(runs.config(**settings(frozen_until="3 epochs"))).build_program(step=0)
    assert program.spec.until == np.inf
    assert program.spec.optimizer.messages == (
        "warning: optimizer.groups.body: 208 parameters are frozen in the whole run, since frozen_until = 3 epochs is "
        "no earlier than its last step 10. To freeze them on purpose, leave them out of optimizer.trainable.",
    )


def test_run_that_trains_nothing_is_an_error():
    found = prepared.prepare(runs.config(**settings(match="/")))
    with pytest.raises(ConfigError, match=r"^optimizer.groups.body.frozen_until: leaves no parameter to train before"):
        found.build_program(step=0)


def test_signal_during_the_change_stops_the_run(tmp_path):
    with Preemption() as preemption:
        change = Rebuild("step 3", preemption)
        _check_not_stopped(change, RunDirectory(tmp_path))
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Preempted, match="asked to stop; the state is saved in"):
            _check_not_stopped(change, RunDirectory(tmp_path))
