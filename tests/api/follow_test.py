"""A job that evaluates the checkpoints of a run while it trains."""

import dataclasses
import shutil
import signal
import time

import pytest

import engine
from engine.api.follow import DONE, EVALUATE, POLL_S, RELOAD, UNREADABLE_POLLS, WAIT, Follower, Wait, follow, has_begun
from engine.api.saved_evaluations import SavedEvaluations
from engine.api.saved_run import SavedRun
from engine.base.errors import ConfigError, RunError
from engine.checkpoint.integrity import DamagedCheckpoints
from engine.cli.main import main
from engine.run import status
from engine.run.directory import RunDirectory
from tests import evaluated, runs, zoo
from tests.evaluated import SMALL, set_status, stored


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return evaluated.train(tmp_path_factory.mktemp("evaluated") / "run")


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


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

    follower = Follower(evaluations, Wait("run", None, messages.append))
    for _ in range(2):
        assert follower.next()[0] == WAIT
    ended = "attempt 1 has ended at step 6 with exit code 42"
    assert messages == [f"waiting: {ended}. The same command resumes it. asked to stop."]
    set_status(run, state="training", exit_code=None)
    assert follower.next()[0] == WAIT
    set_status(run, state="done", exit_code=0)
    action, _, _, text = follower.next()
    assert action == DONE and text.startswith("the run is done")


def test_long_wait_is_reported_at_growing_intervals_and_ends_after_the_timeout():
    clock, messages = Clock(), []
    wait = Wait("runs/a", "48 hours", messages.append, clock)
    state = status.Status(state="preempted", step=6, updated="then")
    for _ in range(47):
        wait.poll(state)
        clock.now += 3600
    assert len(messages) == 6
    assert messages[1] == "waiting: the run has not been updated for 2 h 00 min: its status is preempted at step 6"
    wait.poll(dataclasses.replace(state, updated="later"))
    clock.now += 3600
    wait.poll(None)
    clock.now += 47 * 3600
    text = "runs/a: the run has not been updated for 1 d 23 h: it has no status"
    wait.poll(None)
    assert messages[-1] == f"waiting: {text.removeprefix('runs/a: ')}"
    clock.now += 3600
    with pytest.raises(RunError, match="runs/a: the run has not been updated for 2 d 00 h: it has no status"):
        wait.poll(None)


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("timeout", ["3 steps", "0 seconds", "soon"])
def test_timeout_must_be_a_time(timeout, run):
    with pytest.raises(ConfigError, match="timeout: "):
        follow(run, timeout=timeout)


def test_timeout_ends_a_wait_for_a_run_that_is_not_restarted(run, tmp_path, capsys):
    set_status(run, state="preempted", exit_code=42)
    assert main(["evaluate", str(run), "--follow", "--timeout=0.1 seconds"]) == 1
    assert "its status is preempted at step 6. After it is resumed, the same command" in capsys.readouterr().err
    with pytest.raises(RunError, match="it has no status"):
        follow(tmp_path / "nothing", timeout="0.1 seconds")
    assert main(["evaluate", str(run), "--timeout=1 hour"]) == 1
    assert "Add --follow" in capsys.readouterr().err


def test_results_of_other_settings_before_a_resume_do_not_count(run):
    follower = Follower(SavedEvaluations(run), Wait("run", None, print))
    follow(run)
    file = run / "config.txt"
    old = file.read_text()
    file.write_text(old.replace("evaluations.heldout.data.n: 37", "evaluations.heldout.data.n: 30"))
    assert old != file.read_text()
    assert follower.next()[0] == RELOAD
    found = []
    follow(run, on_results=found.append)
    follow(run, on_results=found.append)
    assert [results["step"] for results in found] == [2, 4, 6]
    file.write_text(old.replace("evaluations.heldout.every: 2 steps", "evaluations.heldout.every: 3 steps"))
    assert old != file.read_text()
    follow(run, on_results=found.append)
    assert len(found) == 3


def test_follow_evaluates_the_same_steps_again_after_a_fresh_start(run, tmp_path):
    follower = Follower(SavedEvaluations(run), Wait("run", None, print))
    assert [follower.next()[1] for _ in range(3)] == [2, 4, 6]
    assert follower.next()[0] == DONE
    (run / "checkpoints").rename(tmp_path / "old")
    set_status(run, state="training", exit_code=None)
    assert follower.next()[0] == WAIT
    (tmp_path / "old").rename(run / "checkpoints")
    assert follower.next()[:2] == (EVALUATE, 2)


def test_results_that_cannot_be_read_are_an_error_only_if_that_lasts(run):
    follower = Follower(SavedEvaluations(run), Wait("run", None, print))
    file = run / "evaluations.jsonl"
    file.mkdir()  # reading it fails, also for root
    assert follower.next()[0] == WAIT
    file.rmdir()
    assert follower.next()[:2] == (EVALUATE, 2)
    file.mkdir()
    for _ in range(UNREADABLE_POLLS):
        assert follower.next()[0] == WAIT
    with pytest.raises(RunError, match=r"evaluations.jsonl: cannot be read \(it is not a regular file\)"):
        follower.next()


def test_other_config_is_used_once_its_number_of_steps_is_known(run):
    follower = Follower(SavedEvaluations(run), Wait("run", None, print))
    file = run / "config.txt"
    old = file.read_text()
    file.write_text(old.replace("train.total: 6 steps", "train.total: 8 steps"))
    assert old != file.read_text()
    set_status(run, state="starting", exit_code=None, total_steps=None)
    assert follower.next()[0] == WAIT
    set_status(run, state="training", total_steps=8)
    assert follower.next()[0] == RELOAD


TWO = """
import os, sys, time, shutil
from pathlib import Path
from engine.cluster import group, processes, cluster_detection
processes.initialize(cluster_detection.detect({}, os.environ).process)
from engine.api.follow import follow
from engine.api.saved_run import SavedRun
run, weights = Path(sys.argv[1]), SavedRun.weights

def late(self, step, program):
    begun = run / f"begun-{step}"
    if group.is_primary() and step == 2:
        while not begun.exists():
            time.sleep(0.01)
        time.sleep(0.5)  # the other process begins its restore
        shutil.rmtree(run / "checkpoints/2")
    begun.touch()
    return weights(self, step, program)

SavedRun.weights = late
follow(run, overrides=["mesh.data=2"], on_results=lambda found: print(found["step"], found["heldout/loss"]))
processes.leave()
"""


@pytest.mark.multiprocess
def test_all_processes_leave_out_a_step_that_is_deleted_during_its_evaluation(run):
    lines = runs.lines_by_process(TWO, run, processes=2)
    assert lines["0"][-2:] == lines["1"][-2:]
    assert [line.split()[0] for line in lines["0"] if "Gloo" not in line] == ["4", "6"]


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


def test_damaged_step_is_named_and_left_out(run):
    """Also the damaged lines among the results: their evaluations are run again."""
    shard = max((run / "checkpoints/2/state").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    content = shard.read_bytes()
    shard.write_bytes(b"x" * len(content))
    (run / "evaluations.jsonl").write_text('{"step": 1e999}\n{"step": 6, "eval')
    messages, found = [], []
    with pytest.raises(DamagedCheckpoints, match=r"evaluated except for damaged ones: step 2\. Copy") as error:
        follow(run, on_results=found.append, on_message=messages.append)
    assert error.value.exit_code == 43 and [results["step"] for results in found] == [4, 6]
    lines, damaged, fewer_lines = messages  # the next result has replaced the incomplete line
    assert lines.startswith(f"warning: {run}/evaluations.jsonl: skipped 2 damaged lines, the first is line 1: 1e999")
    assert "skipped 1 damaged line" in fewer_lines
    assert damaged.startswith("step 2 is left out, since it is damaged: state/") and "expected" in damaged
    set_status(run, state="training", exit_code=None)
    with pytest.raises(RunError, match="has not been updated"):  # it waits for the next step
        follow(run, timeout="0.1 seconds")
    shard.write_bytes(content)
    set_status(run, state="done", exit_code=0)
    follow(run, on_results=found.append)
    assert [results["step"] for results in found] == [4, 6, 2]


CONFIG = """
from engine.config import draft
from tests import runs


def get_config():
    settings = dict(train__total="8 steps", checkpoint__every="1 step", checkpoint__keep_latest=99)
    hook = dict(target="tests.api.follow_test.Slow", every="1 step")
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
        deadline = time.monotonic() + 180
        while not stored(run):
            assert time.monotonic() < deadline and follower.poll() is None
            time.sleep(0.02)
        follower.send_signal(signal.SIGKILL)
        follower.communicate()
        follower = runs.start(*words)
        output, _ = follower.communicate(timeout=180)
        assert follower.returncode == 0, output
        assert "the run is done at step 8, and all of its checkpoints are evaluated" in output
        assert training.wait(timeout=180) == 0
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
