import dataclasses
import os
import socket
import subprocess
import sys

import pytest

from engine.base import json_text
from engine.sweeps.records import SweepRecord, read_sweep
from engine.sweeps.status import at_a_time, status_of, time_left
from tests.sweeps.made import complete, failed, make_run, make_sweep, pruned, running

TRIALS = [
    complete(1e-3, 16, 0.5),
    complete(2e-3, 64, 0.9, began_s=30, results=[0.85, 0.95], interval=[0.8, 0.975]),
    pruned(3e-3, 0.25, began_s=90),
    failed(4e-3, "RESOURCE_EXHAUSTED: out of memory", "out of memory", began_s=111),
    failed(5e-3, "task.width: found 7.", "failed", began_s=113),
    running(6e-3, {30: 0.625}, began_s=120),
]

TEXT = """\
sweep       {folder}: tpe, heldout/accuracy max, pruned by halving
trials      5 of 9 finished (2 complete, 1 pruned, 2 failed), 1 running, 3 to come
running     trial 5: 45/90 steps, heldout/accuracy 0.625
best        trial 1: heldout/accuracy 0.9 (95 % interval 0.8 to 0.975 over 2 seeds)
            --config.optimizer.learning_rate=0.002
            --config.task.width=64
            --config.optimizer.weight_decay=0.02
steps       255 trained
"""
FAILED = """\
importance  needs 6 completed trials, found 2
failed      trial 3 (out of memory): RESOURCE_EXHAUSTED: out of memory
            trial 4: task.width: found 7.
"""


def test_status_shows_progress_the_best_and_failed_trials(tmp_path):
    made = make_sweep(tmp_path / "sweep", TRIALS)
    make_run(made, 5, {"optimizer.learning_rate": 6e-3}, state="training", step=45)
    text = status_of(made).text()
    assert text.startswith(TEXT.format(folder=made)) and FAILED in text
    assert "about " in text and "3 to come and 1 running, 46.7 s each, the mean of 3; 2 at a time" in text
    assert "\nrank  trial  state" in text


def test_json_has_the_same_facts(tmp_path):
    found = json_text.parse(json_text.dumps(status_of(make_sweep(tmp_path / "sweep", TRIALS)).data()))
    counts = [found[name] for name in ("trials", "finished", "left", "complete", "pruned", "running", "failed")]
    assert counts == [9, 5, 3, 2, 1, 1, 2] and found["out_of_memory"] == 1
    assert (found["best"], found["steps"], len(found["rows"])) == (1, 210, 6)


def with_running_since(sweep: SweepRecord, seconds: float) -> SweepRecord:
    """Returns the sweep as it was so many seconds after the start of the running trial."""
    trials = [
        dataclasses.replace(trial, seconds=seconds) if trial.state == "running" else trial for trial in sweep.trials
    ]
    return dataclasses.replace(sweep, trials=trials)


def test_time_left_is_the_mean_time_of_the_rest_divided_by_the_slots(tmp_path):
    sweep = read_sweep(make_sweep(tmp_path / "sweep", TRIALS))
    mean = (60 + 60 + 20) / 3
    assert time_left(with_running_since(sweep, 10.0)).seconds == (3 * mean + mean - 10) / 2
    assert time_left(with_running_since(sweep, 1e6)).seconds == 3 * mean / 2
    assert time_left(read_sweep(make_sweep(tmp_path / "one", TRIALS[:1], trials=1))).seconds == 0
    early = time_left(read_sweep(make_sweep(tmp_path / "early", [running(1e-3, {})])))
    assert (early.seconds, early.how) == (None, "not known before a trial has finished")


def test_trials_at_a_time_are_those_whose_times_overlap(tmp_path):
    def most(*begins: float) -> int:
        trials = [complete(1e-3, 16, 0.5, began_s=began) for began in begins]
        return at_a_time(read_sweep(make_sweep(tmp_path / f"{begins}", trials)))

    assert (most(0, 60, 120), most(0, 59), most(0, 10, 20, 80), most()) == (1, 2, 3, 1)


@pytest.mark.multiprocess
def test_running_trial_whose_process_was_killed_says_so(tmp_path):
    made = make_sweep(tmp_path / "sweep", [running(1e-3, {})])
    code = (
        "import sys; from pathlib import Path; from engine.run import status; from engine.run.lease import acquire\n"
        "run = Path(sys.argv[1]); lease = acquire(run / 'lease')\n"
        "status.write(run / 'status.json', status.Status(state='training', step=7, total_steps=90), lease)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = make_run(made, 0, {"optimizer.learning_rate": 1e-3}, state="training", host=socket.gethostname(), pid=1)
    subprocess.run([sys.executable, "-c", code, str(run)], env=dict(os.environ), check=False)
    text = status_of(made).text()
    assert "trial 0: 7/90 steps; attempt 1 (process " in text and "ended without a verdict" in text


def test_status_without_a_complete_trial_says_so(tmp_path):
    text = status_of(make_sweep(tmp_path / "sweep", [])).text()
    assert "none yet: no trial is complete" in text and "No trial has begun." in text


def test_values_of_a_function_are_no_settings(tmp_path):
    text = status_of(make_sweep(tmp_path / "sweep", TRIALS, reference="", metric="objective")).text()
    assert "trial 1: objective 0.9" in text and "            optimizer.learning_rate=0.002\n" in text
