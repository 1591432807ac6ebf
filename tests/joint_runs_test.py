"""Runs on several datasets: from a config and from Python, resumed bitwise, with evaluations of each dataset."""

import json

import jax
import numpy as np
import pytest

import engine
from engine.api.objects import with_objects
from engine.api.prepared import prepare
from engine.base.errors import DataError
from engine.config.text import to_text
from engine.data.adapt import descriptions
from engine.loop.trainer import Trainer
from engine.run.directory import RunDirectory
from tests import runs
from tests.joint import twin

pytestmark = pytest.mark.slow

BOXES, LANES = {"target": "tests.joint.twin.boxes"}, {"target": "tests.joint.twin.lanes"}
DATA = {
    "target": "engine.Joint",
    "sources": {"boxes": BOXES, "lanes": LANES},
    "rows": {"boxes": 2},
    "every": {"lanes": 3},
    "weights": {"lanes": {"0 steps": 0.5, "6 steps": 1.0}},
}
HELD_OUT = {
    "classes": {"data": {"target": "engine.Joint", "sources": {"boxes": {**BOXES, "seed": 9}}}, "every": "7 steps"},
    "points": {"data": {"target": "engine.Joint", "sources": {"lanes": {**LANES, "seed": 9}}}, "every": "7 steps"},
}
STEPS = 13  # 104 boxes are 2.6 of their epochs; 16 lanes are 0.6 of theirs


def config(**settings):
    """A config: batches of 4 bundles, each with two boxes and one lane, lanes in every third step."""
    task = {"target": "tests.joint.twin.Twin", "dropout": 0.2}
    plain = {"task": task, "data": DATA, "train__global_batch_size": 4, "train__total": f"{STEPS} steps"}
    plain["optimizer__schedule"] = "constant"
    return runs.config(**{**plain, "evaluations": HELD_OUT, "checkpoint__every": "5 steps", **settings})


def train(config, path, objects=None, devices: int = 1) -> None:
    """Trains on the first devices, for which a program compiles faster than for all eight."""
    prepared = prepare(config, objects, devices=jax.devices()[:devices])
    with RunDirectory.open(path) as directory:
        directory.write_config_text(to_text(config))
        Trainer(
            prepared.task,
            prepared.mesh,
            prepared.source,
            config,
            directory,
            evaluation_sources=prepared.evaluation_sources,
            hooks={},
            on_row=lambda row: None,
            on_message=lambda text: None,
        ).run()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without an interruption; its directory and what it has printed."""
    path = tmp_path_factory.mktemp("joint") / "whole"
    train(config(), path)
    return path


def losses(run, name="loss"):
    return list(runs.rows(run, name).values())


def test_run_says_what_a_step_takes_and_what_an_epoch_is():
    prepared = prepare(config(), devices=jax.devices()[:1])
    text = "a step takes 8 boxes and 4 lanes (one of 3 steps); an epoch is that of lanes"
    assert descriptions(prepared.sources, True, 4) == [f"data: {text} (engine.data.source.ArraySource)."]
    assert len(prepared.source) == 81 == 27 * 3


def test_steps_without_a_dataset_have_no_loss_of_it(whole):
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert len(rows) == STEPS
    for row in rows:
        assert (row["lanes"] == "NaN") == (row["step"] % 3 != 0)
        assert row["loss"] == pytest.approx(row["boxes"] + (0 if row["lanes"] == "NaN" else row["lanes"]), rel=1e-6)
    evaluated = runs.rows(whole, "points/error")
    assert list(evaluated) == [7, 13] and "points/boxes" not in (whole / "metrics.jsonl").read_text()
    assert len(losses(whole, "classes/accuracy")) == 2


def test_stopped_run_resumes_with_the_same_bits(whole, tmp_path):
    train(config(train__total="7 steps"), tmp_path)
    train(config(data__workers=2), tmp_path)
    for name in ("loss", "points/loss", "classes/accuracy"):
        assert losses(tmp_path, name) == losses(whole, name)


def test_dispatches_are_as_long_as_the_datasets_of_steps_allow(whole, tmp_path):
    train(config(train__steps_per_dispatch=2, evaluations={}), tmp_path)
    assert losses(tmp_path) == losses(whole)


def test_each_step_may_take_one_dataset_chosen_by_ratio(tmp_path):
    data = {**{name: DATA[name] for name in ("target", "sources")}, "choose": {"boxes": 3, "lanes": 1}}
    train(config(data=data, train__steps_per_dispatch=2, evaluations={}), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert len(rows) == STEPS and sum(row["boxes"] == "NaN" for row in rows) == 3
    for row in rows:
        assert (row["boxes"] == "NaN") != (row["lanes"] == "NaN")
        assert row["loss"] == pytest.approx(row["lanes"] if row["boxes"] == "NaN" else row["boxes"], rel=1e-6)


def test_run_from_python_is_that_of_the_config(whole, tmp_path):
    data = engine.Joint(
        {"boxes": twin.boxes(), "lanes": twin.lanes()}, DATA["rows"], every=DATA["every"], weights=DATA["weights"]
    )
    found, objects = with_objects(config(evaluations={}), twin.Twin(dropout=0.2), data, {}, {})
    train(found, tmp_path, objects)
    assert losses(tmp_path) == losses(whole)


def test_verbs_read_one_dataset(whole):
    found = engine.evaluate(whole)
    assert found["points/loss"] == pytest.approx(losses(whole, "points/loss")[-1], rel=1e-6)  # on other devices
    predicted = engine.predict(whole, evaluation="points")
    assert predicted["points"].shape == (27, 2) and predicted["example"].tolist() == list(range(27))
    with pytest.raises(DataError, match=r"data: the examples belong to no named dataset"):
        engine.evaluate(whole, evaluation_data={"points": twin.lanes()})
    with pytest.raises(DataError, match=r"predict: found engine.Joint of boxes x 2, lanes. An evaluation reads one"):
        engine.predict(whole, data=twin.joint())
    assert engine.predict(whole, data=engine.Joint({"lanes": twin.lanes()}))["points"].shape == (27, 2)


def test_learned_weights_train(tmp_path):
    task = {"target": "tests.joint.twin.Twin", "learned": True, "scale": 1.0}
    data = {**DATA, "weights": {}, "every": {}}
    settings = {"task": task, "data": data, "optimizer__learning_rate": 0.05, "train__total": "60 steps"}
    train(config(**settings, evaluations={}), tmp_path)
    first, *_, last = losses(tmp_path, "weight/lanes")
    assert first == 1.0 and last > 1.5  # the error of lanes falls below that of boxes
    assert losses(tmp_path, "weight/lanes")[-1] > losses(tmp_path, "weight/boxes")[-1]
    assert np.isfinite(losses(tmp_path)).all()
