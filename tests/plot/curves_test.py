import json
import re

import pytest

from engine.base.errors import ConfigError, RunError
from engine.plot.curves import Panel, choose_panels, read_curves

RUN = {"loss": {1: 2.0}, "accuracy": {1: 0.5}, "grad_norm": {1: 1.0}, "examples_per_s": {1: 9.0}, "val/loss": {2: 1.0}}


def test_last_value_of_a_step_counts_and_damaged_lines_are_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 2, "loss": 1.0}, {"step": 1, "loss": 3.0, "time": 5.0}, {"step": 2, "loss": 2.0, "a/x": [1, 2]}]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 3, "lo')
    assert read_curves(path) == {"loss": {1: 3.0, 2: 2.0}}


@pytest.mark.parametrize(
    ("text", "sentence"), [(None, "there is no metrics.jsonl. Give the run"), ("", "has no numbers yet. Wait until")]
)
def test_run_without_curves_is_one_sentence(text, sentence, tmp_path):
    path = tmp_path / "metrics.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RunError, match=re.escape(sentence)):
        read_curves(path)


def test_metrics_of_the_task_are_shown_with_their_evaluations():
    assert choose_panels({"a": RUN}, []) == [
        Panel("loss", {"train": {1: 2.0}, "val": {2: 1.0}}),
        Panel("accuracy", {"train": {1: 0.5}}),
    ]


def test_runs_share_a_chart():
    [panel] = choose_panels({"a": RUN, "b": {"val/loss": {2: 3.0}}}, ["val/loss"])
    assert panel.curves == {"a val": {2: 1.0}, "b val": {2: 3.0}}


def test_unknown_metric_is_an_error_with_what_there_is():
    with pytest.raises(ConfigError, match=r"--metric = los: no run has this metric. Did you mean loss.*Found: loss, a"):
        choose_panels({"a": RUN}, ["los"])


def test_values_that_differ_by_magnitudes_need_a_logarithmic_scale():
    assert Panel("loss", {"train": {1: 100.0, 2: 1.0}}).is_log
    assert not Panel("loss", {"train": {1: 100.0, 2: 0.0}}).is_log
