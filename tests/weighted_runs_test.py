"""Runs that draw examples by weights: resume over a change of the weights, what was drawn, refused changes."""

import numpy as np
import pytest

import engine
from engine.api import resume
from engine.api.prepared import prepare
from engine.api.resume import Accepted
from engine.base.errors import ConfigError, DataError
from engine.data import dataset_summary
from engine.run import ledger
from engine.run.directory import RunDirectory
from tests import runs, zoo

TIMES = {"0 steps": {"0": 1, "1": 0, "2": 0, "3": 0}, "5 steps": "natural", "20 steps": "class"}
LABELS = zoo.examples(64, 0)["y"]


def config(balance, **settings):
    """A config of 12 steps whose last change of the shares spans a restart."""
    data = dict(target="engine.Weighted", source=dict(target="tests.zoo.source"), tags="y", balance=balance)
    fixed = dict(data=data, evaluations={}, optimizer__schedule="constant", log__examples=True, log__every="3 steps")
    return runs.config(**{"train__total": "12 steps", "data__interpolate": True, **fixed, **settings})


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    path = tmp_path_factory.mktemp("unbroken")
    engine.train(config(TIMES), workdir=path)
    return path


def test_run_resumed_while_the_shares_change_draws_the_same_examples(unbroken, tmp_path):
    engine.train(config(TIMES, train__total="6 steps"), workdir=tmp_path)
    engine.train(config(TIMES, data__workers=1), workdir=tmp_path)
    drawn = ledger.read(unbroken / "examples")
    assert list(drawn) == list(range(1, 13))
    assert ledger.read(tmp_path / "examples") == drawn
    for name in ("loss", "data_share/0", "data_share/3"):
        assert runs.rows(tmp_path, name) == runs.rows(unbroken, name)


def test_times_in_percent_follow_the_total_which_a_resume_must_accept(tmp_path):
    times = {"0%": TIMES["0 steps"], "50%": {"0": 0, "1": 1, "2": 0, "3": 0}}
    short, long = (config(times, data__interpolate=False, train__total=f"{count} steps") for count in (2, 8))
    engine.train(short, workdir=tmp_path)
    changed = "2 steps -> 8 steps changes the times in percent of the run at which the weights of data change. To"
    with pytest.raises(ConfigError, match=changed):
        engine.train(long, workdir=tmp_path)
    engine.train(long, workdir=tmp_path, accept_schedule_change=True)
    drawn = [set(LABELS[indices].tolist()) for indices in ledger.read(tmp_path / "examples").values()]
    assert drawn == [{0}, {1}, {0}, {0}, {1}, {1}, {1}, {1}]


def test_ledger_and_metrics_show_the_shares_that_were_drawn(unbroken):
    drawn = ledger.read(unbroken / "examples")
    for last in (3, 6, 9, 12):
        labels = LABELS[[index for step in range(last - 2, last + 1) for index in drawn[step]]]
        shares = {str(label): (labels == label).mean() for label in np.unique(labels).tolist()}
        assert ledger.shares(unbroken / "examples", last - 2, last) == pytest.approx(shares)
        found = {label: runs.rows(unbroken, f"data_share/{label}")[last] for label in "0123"}
        assert {label: share for label, share in found.items() if share} == pytest.approx(shares)
    assert runs.rows(unbroken, "data_share/0")[3] > 0.7
    assert runs.rows(unbroken, "data_share/0")[12] < 0.5


def test_changed_weights_are_refused_by_name_until_they_are_accepted(unbroken):
    directory, later = RunDirectory(unbroken), config({**TIMES, "20 steps": "sqrt"})
    with pytest.raises(ConfigError) as error:
        resume.check_config(later, directory, Accepted())
    changed, advice = str(error.value).splitlines()[1:]
    assert changed.startswith("  data.balance: ") and changed.endswith("'20 steps': 'sqrt'}")
    assert "To continue at the same position with the new weights, add --accept-data-change." in advice
    assert resume.check_config(later, directory, Accepted(data=True)) == []
    seed = config({**TIMES, "20 steps": "sqrt"}, train__seed=1)
    with pytest.raises(ConfigError, match=r"train.seed: 0 -> 1") as error:
        resume.check_config(seed, directory, Accepted(data=True))
    assert "--accept-data-change" not in str(error.value)

    summaries = {"data": dataset_summary.summarize(prepare(later).source)}
    with pytest.raises(DataError, match=r"data: content: balance of tags \w+: .* class at 20 steps -> balance of tags"):
        resume.check_data(summaries, directory, Accepted())
    _, messages = resume.check_data(summaries, directory, Accepted(data=True))
    assert "the dataset has changed (--accept-data-change): data: content: balance of tags" in messages[0]
