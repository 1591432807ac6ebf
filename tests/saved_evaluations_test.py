"""Evaluations of saved checkpoints: stored results, several steps, and a job that follows a running one."""

import json
import shutil
import signal
import time

import pytest

import engine
from engine import inference
from engine.config.errors import CheckpointError, ConfigError, RunError
from engine.main import main
from engine.run import status
from engine.run.directory import RunDirectory
from engine.saved.run import SavedRun
from engine.saved_evaluations import (
    POLL_S,
    Follower,
    SavedEvaluations,
    choose_steps,
    follow,
    has_begun,
    read_results,
)
from tests import runs, zoo

SMALL = ["evaluations.heldout.data.n=20"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluated") / "run"
    settings = dict(train__total="6 steps", checkpoint__best="heldout/loss", checkpoint__every=None)
    settings |= dict(checkpoint__keep_latest=9, evaluations__heldout__every="2 steps")
    engine.train(runs.config(**settings), workdir=path)  # saves the steps that it evaluates
    return path


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def stored(run):
    return read_results(RunDirectory(run).evaluations)


def set_status(run, **changes):
    file = run / "status.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_results_are_stored_with_the_settings_that_differ(run):
    found = engine.evaluate(run, step=4)
    small = engine.evaluate(run, step=4, overrides=[*SMALL, "mesh.fsdp=2"])
    other = engine.evaluate(run, evaluation_data={"other": zoo.source(12, seed=3)})
    assert other.keys() == {"step", "heldout/loss", "heldout/accuracy", "other/loss", "other/accuracy"}
    first, second, _, third = stored(run)
    assert (first.step, first.evaluation, first.settings) == (4, "heldout", {})
    assert first.metrics == {name: value for name, value in found.items() if name != "step"}
    assert second.settings == {"evaluations.heldout.data.n": "20"}
    assert second.metrics["heldout/loss"] == small["heldout/loss"] != found["heldout/loss"]
    assert third.evaluation == "other"
    assert third.settings["evaluations.other.data.type"] == "engine.data.source.ArraySource"
    assert "an object with the content" in third.settings["evaluations.other.data"]
    assert first.time.endswith("+00:00")


def test_several_steps_are_evaluated_with_one_program(run, capsys):
    assert [found["step"] for found in inference.evaluate_steps(run, "all")] == [2, 4, 6]
    assert choose_steps(SavedRun(run), "6, 2,latest") == [6, 2]
    with pytest.raises(CheckpointError, match=r"no checkpoint '3'"):
        choose_steps(SavedRun(run), "2,3")
    assert main(["evaluate", str(run), "--step=2,latest", "--evaluations.heldout.data.n=20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line or line.startswith("step")] == ["step: 2", "", "step: 6"]
    assert len(stored(run)) == 5


def test_directory_that_cannot_be_written_gives_a_sentence(run, capsys):
    (run / "evaluations.jsonl").mkdir()
    assert main(["evaluate", str(run), "--step=2,4"]) == 0
    captured = capsys.readouterr()
    assert "heldout/loss: " in captured.out
    assert captured.err.count("cannot be written (Is a directory), so the results are not stored.") == 1


def test_damaged_lines_are_left_out(run):
    engine.evaluate(run, step=2)
    file = run / "evaluations.jsonl"
    file.write_text("[1\n{}\n3\n" + file.read_text() + '{"step": 4, "eval')
    assert [result.step for result in stored(run)] == [2]
    engine.evaluate(run, step=4)
    assert [result.step for result in stored(run)] == [2, 4]


def test_follow_evaluates_each_step_once_per_setting_and_ends_with_the_run(run):
    engine.evaluate(run, step=4)
    found, messages = [], []
    follow(run, on_results=found.append, on_message=messages.append)
    assert [results["step"] for results in found] == [2, 6]
    assert messages == ["the run is done at step 6, and all of its checkpoints are evaluated"]
    follow(run, on_results=found.append)
    assert len(found) == 2
    follow(run, overrides=SMALL, on_results=found.append)
    assert [results["step"] for results in found] == [2, 6, 2, 4, 6]
    assert sorted((result.step, len(result.settings)) for result in stored(run)) == [
        (step, changed) for step in (2, 4, 6) for changed in (0, 1)
    ]


def test_follow_runs_only_the_evaluations_that_are_missing(run):
    engine.evaluate(run, step=2)
    found = []
    follow(run, overrides=["evaluations.new.data.target=tests.zoo.source"], on_results=found.append)
    assert found[0].keys() == {"step", "new/loss", "new/accuracy"}
    assert found[1].keys() == {"step", "new/loss", "new/accuracy", "heldout/loss", "heldout/accuracy"}


def test_follow_takes_the_data_of_an_evaluation_as_an_object(run):
    found = []
    for _ in range(2):  # the second call finds the results of the first
        follow(run, evaluation_data={"heldout": zoo.source(12, seed=3)}, on_results=found.append)
    assert [results["step"] for results in found] == [2, 4, 6]


@pytest.mark.parametrize(("state", "code"), [("failed", 43), ("failed", 1), ("interrupted", 130)])
def test_follow_of_a_failed_run_ends_with_its_code(run, state, code):
    set_status(run, state=state, exit_code=code, reason="the loss is not finite.")
    found = []
    with pytest.raises(RunError, match=f"has ended at step 6 with exit code {code}: the loss is not finite") as error:
        follow(run, on_results=found.append)
    assert error.value.exit_code == code and len(found) == 3


def test_follow_waits_for_a_run_that_will_be_restarted(run):
    set_status(run, state="preempted", exit_code=42, reason="asked to stop.")
    messages = []
    evaluations = SavedEvaluations(run, on_message=messages.append)
    for step in (2, 4, 6):
        evaluations.run(step)

    follower = Follower(evaluations)
    for _ in range(2):
        assert follower.next() == (None, [], "")
    ended = "attempt 1 has ended at step 6 with exit code 42"
    assert messages == [f"waiting: {ended}. The same command resumes it. asked to stop."]
    set_status(run, state="training", exit_code=None)
    assert follower.next() == (None, [], "")
    set_status(run, state="done", exit_code=0)
    assert follower.next()[2].startswith("the run is done")


def test_follow_waits_until_the_number_of_steps_is_known(run, tmp_path):
    directory = RunDirectory(run)
    assert has_begun(directory) and not has_begun(RunDirectory(tmp_path / "nothing"))
    set_status(run, state="starting", exit_code=None, total_steps=None)
    assert not has_begun(directory)
    set_status(run, state="failed", exit_code=1)
    assert has_begun(directory)


def test_checkpoint_that_is_deleted_before_its_evaluation_is_reported(run, monkeypatch):
    messages, found = [], []
    weights = SavedRun.weights

    def late(self, step, program):
        if step == 2:
            shutil.rmtree(run / "checkpoints/2")
        return weights(self, step, program)

    monkeypatch.setattr(SavedRun, "weights", late)
    follow(run, on_results=found.append, on_message=messages.append)
    assert [results["step"] for results in found] == [4, 6]
    assert messages[0] == "step 2 was deleted before its evaluation. A larger checkpoint.keep_latest keeps it."


def test_run_without_evaluations_says_how_to_add_one(run):
    config = (run / "config.txt").read_text()
    (run / "config.txt").write_text("\n".join(line for line in config.splitlines() if "heldout" not in line))
    with pytest.raises(ConfigError, match=r"no evaluations. Add one: --evaluations.NAME.data.target="):
        engine.evaluate(run)
    assert engine.evaluate(run, overrides=["evaluations.a.data.target=tests.zoo.source"]).keys() >= {"a/loss"}


CONFIG = """
from engine.config import draft
from tests import runs


def get_config():
    settings = dict(train__total="8 steps", checkpoint__every="1 step", checkpoint__keep_latest=99)
    hook = dict(target="tests.saved_evaluations_test.Slow", every="1 step")
    return runs.config(**settings, evaluations__heldout__every=None, hooks={"slow": hook})
"""


class Slow:
    """A hook that makes the steps slow enough for another process to read checkpoints meanwhile."""

    def run(self, trainer, state, step):
        time.sleep(0.3)


@pytest.mark.multiprocess
def test_followed_run_is_evaluated_once_per_step_although_the_follower_is_killed(tmp_path):
    (tmp_path / "slow.py").write_text(CONFIG)
    run = tmp_path / "run"
    words = ("evaluate", str(run), "--follow")
    follower = runs.start(*words)
    training = runs.start("train", f"--config={tmp_path / 'slow.py'}", f"--workdir={run}")
    try:
        deadline = time.monotonic() + 100
        while not stored(run):
            assert time.monotonic() < deadline and follower.poll() is None
            time.sleep(0.02)
        follower.send_signal(signal.SIGKILL)
        follower.communicate()
        follower = runs.start(*words)
        output, _ = follower.communicate(timeout=100)
        assert follower.returncode == 0, output
        assert "the run is done at step 8, and all of its checkpoints are evaluated" in output
        assert training.wait(timeout=30) == 0
    finally:
        for process in (follower, training):
            process.kill()
            process.communicate()
    steps = [info.step for info in engine.checkpoints(run)]  # a save is left out while the one before is written
    assert [result.step for result in stored(run)] == steps
    assert len(steps) > 3
    assert status.read(run / "status.json").attempt == 1


def test_polls_are_rare_enough_for_shared_storage():
    assert POLL_S >= 1
