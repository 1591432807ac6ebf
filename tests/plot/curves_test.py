import json
import re

import pytest

from engine.base.errors import ConfigError, RunError
from engine.plot.curves import Panel, choose_panels, read_curves

RUN = {
    "training/loss": {1: 2.0},
    "training/accuracy": {1: 0.5},
    "training/learning_rate/head": {1: 1.0},
    "training/examples_per_s": {1: 9.0},
    "val/loss": {2: 1.0},
}


def test_last_value_of_a_step_counts_and_damaged_lines_are_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 2, "batch": 1, "loss": 1.0}, {"step": 1, "batch": 0, "loss": 3.0, "time": 5.0}]
    rows += [{"step": 2, "batch": 1, "loss": 2.0, "a/x": [1, 2]}, {"step": 2, "val/loss": 4.0, "val/bad": "NaN"}]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 3, "lo')
    assert read_curves(path) == {"training/loss": {1: 3.0, 2: 2.0}, "val/loss": {2: 4.0}}


def test_evaluation_named_training_has_curves_of_its_own(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 2, "batch": 1, "loss": 1.0}, {"step": 2, "training/loss": 4.0}]
    path.write_text("\n".join(map(json.dumps, rows)))
    [panel] = choose_panels({"a": read_curves(path)}, ["loss"])
    assert panel.curves == {"training": {2: 1.0}, "evaluation training": {2: 4.0}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(None, "there is no metrics.jsonl. Give the directory of a run."), ("", "has no numbers yet. Wait until")],
)
def test_run_without_curves_is_one_sentence(text, sentence, tmp_path):
    path = tmp_path / "metrics.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RunError, match=re.escape(sentence)):
        read_curves(path)


def test_runs_below_a_folder_are_named(tmp_path):
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/metrics.jsonl").touch()
    with pytest.raises(RunError, match=rf"no metrics.jsonl. Runs below it: {tmp_path}/runs/a\.$"):
        read_curves(tmp_path / "metrics.jsonl")


def test_metrics_of_the_task_are_shown_with_their_evaluations():
    assert choose_panels({"a": RUN}, []) == [
        Panel("loss", {"training": {1: 2.0}, "val": {2: 1.0}}),
        Panel("accuracy", {"training": {1: 0.5}}),
    ]


def test_metric_with_a_slash_keeps_its_name():
    [panel] = choose_panels({"a": RUN}, ["learning_rate/head"])
    assert panel.curves == {"training": {1: 1.0}}


def test_runs_share_a_chart():
    [panel] = choose_panels({"a": RUN, "b": {"val/loss": {2: 3.0}}}, ["val/loss"])
    assert panel.curves == {"a val": {2: 1.0}, "b val": {2: 3.0}}


def test_unknown_metric_is_an_error_with_what_there_is():
    with pytest.raises(ConfigError, match=r"--metric = los: no run has this metric. Did you mean loss.*Found: loss, a"):
        choose_panels({"a": RUN}, ["los"])


def test_values_that_differ_by_magnitudes_need_a_logarithmic_scale():
    assert Panel("loss", {"train": {1: 100.0, 2: 1.0}}).is_log
    assert not Panel("loss", {"train": {1: 100.0, 2: 0.0}}).is_log
