"""Evaluations and predictions of a saved run: which data they read, which settings may change, several processes."""

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import engine
from engine.api import inference
from engine.base.errors import ConfigError, DataError, RunError, TaskError
from engine.cli.main import main
from engine.storage import mounts
from tests import runs, zoo
from tests.bucket_store import upload
from tests.predicting import FAR, NAMES, SIZES, Boxes, Predict, Samples, Unreadable

TASK = "tests.predicting.Predict"
DATA = "tests.predicting.Unreadable"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on eight devices with averaged weights; its training data and its hook no longer exist."""
    path = tmp_path_factory.mktemp("inference") / "run"
    heldout = dict(data=dict(target=DATA), every="4 steps")
    settings = dict(train__total="4 steps", train__ema_decay=0.5, mesh__fsdp=4, checkpoint__every="2 steps")
    engine.train(runs.config(**settings, task__target=TASK, evaluations__heldout=heldout), workdir=path)
    config = path / "config.txt"
    config.write_text(config.read_text().replace("data.target: tests.zoo.source", "data.target: gone.source", 1))
    return path


def test_predictions_agree_with_the_evaluation(run):
    found = engine.predict(run)
    examples = zoo.examples(37, seed=5)
    assert found["id"].tolist() == NAMES
    correct = found["label"] == examples["y"]
    measured = engine.evaluate(run)
    assert measured["heldout/accuracy"] == pytest.approx(np.average(correct, weights=examples["valid"]))
    loaded = engine.load(run)
    np.testing.assert_allclose(found["scores/logits"], loaded.model(examples["x"]), atol=1e-5)


def test_data_is_an_object_or_a_section_or_an_evaluation(run, tmp_path):
    whole = engine.predict(run)
    given = engine.predict(run, data=Unreadable(n=5), batch_size=8)
    section = engine.predict(run, data={"target": DATA, "n": 9, "limit": 5}, step=4)
    overridden = engine.predict(run, overrides=["data.target=" + DATA, "data.n=5", "mesh.fsdp=2", "mesh.tensor=2"])
    limited = engine.predict(run, evaluation="heldout", overrides=["data.limit=5"])
    for found in (given, section, overridden, limited):
        assert found["id"].tolist() == NAMES[:5]
        np.testing.assert_allclose(found["scores/logits"], whole["scores/logits"][:5], atol=1e-5)
    done = []
    out = tmp_path / "p.npz"
    assert engine.predict(run, out=out, on_progress=lambda *counts: done.append(counts)) == {}
    assert done[-1] == (37, 37)
    stored = np.load(out)
    assert all(stored[name].tolist() == whole[name].tolist() for name in whole)


def test_evaluate_reads_other_data_with_other_settings(run):
    other = engine.evaluate(run, overrides=["evaluations.heldout.data.n=20", "evaluations.heldout.batch_size=8"])
    data = zoo.examples(37, seed=5)
    correct = engine.predict(run)["label"] == data["y"]
    expected = np.average(correct[:20], weights=data["valid"][:20])
    assert other["heldout/accuracy"] == pytest.approx(expected)
    more = engine.evaluate(run, overrides=["evaluations.train.data.target=tests.zoo.source"])
    assert more.keys() >= {"train/loss", "heldout/loss"}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(evaluation="heldot"), "no such evaluation. Did you mean heldout"),
        (dict(evaluation="heldout", data=Unreadable()), "other data is given too"),
        (dict(overrides=["task.width=3"]), "--config.task.width: the run's own config gives the model"),
        (dict(overrides=["train.global_batch_size=auto"]), "train.global_batch_size: found auto. Only a training"),
        (dict(overrides=["train.total=3 steps"]), "--config.train.total: the run's own config"),
        (dict(overrides=["data.target=" + DATA, "data.m=3"]), "data.m: .*takes no such argument"),
        (dict(data={"limit": 3}), "data.target: is empty"),
        (dict(out="p.csv"), "the format .csv is unknown"),
        (dict(out="p.npz", figures=-1), "figures = -1: allowed is a whole number from 0"),
        (dict(figures=2), "they are written next to the file `out`. Set it, too"),
    ],
    ids=str,
)
def test_wrong_arguments_of_predict_are_config_errors(run, settings, text):
    with pytest.raises(ConfigError, match=text):
        engine.predict(run, **settings)


def test_predict_needs_data_where_a_run_has_several_evaluations_and_a_task_with_predict(run):
    more = ["evaluations.b.data.target=tests.zoo.source"]
    with pytest.raises(ConfigError, match=r"no data is chosen. Give a dataset, .*\(heldout, b\): --evaluation=NAME"):
        engine.predict(run, overrides=more)
    with pytest.raises(TaskError, match="Classify has no predict"):
        engine.predict(run, overrides=more, evaluation="b", task=zoo.Classify())
    assert len(engine.predict(run, overrides=more, evaluation="b", task=Predict())["label"]) == 64


TWO = """
import hashlib, json, os, sys
import numpy as np
from engine.cluster import group, processes, cluster_detection
processes.initialize(cluster_detection.detect({}, os.environ).process)
import engine
from engine.api.saved_run import SavedRun
if not group.is_primary():
    del SavedRun.choose  # only the primary lists the checkpoints, of which another job may delete some meanwhile
engine.evaluate(sys.argv[1], overrides=["mesh.fsdp=2"])
found = engine.predict(sys.argv[1], overrides=["mesh.fsdp=2"])
keys = sorted(found)
print(json.dumps([keys, found["label"].tolist(), found["id"].tolist() if "id" in found else None]))
engine.predict(sys.argv[1], overrides=["mesh.fsdp=2", "data.limit=30"], out=sys.argv[2])
from tests.predicting import bucketed
found = engine.predict(sys.argv[1], data=bucketed(), overrides=["mesh.fsdp=2"], batch_size=4)
print(json.dumps([found["example"].tolist(), found["label"].tolist(), found["id"].tolist() if "id" in found else None]))
print(json.dumps(found["batch/mask"].sum(1).tolist()))
engine.export(sys.argv[1], sys.argv[3])
from engine.base.errors import ConvoyError
from tests.drawing import Broken
settings = dict(task=Broken(), overrides=["mesh.fsdp=2", "evaluations.heldout.figures=2"])
for call, more in ((engine.evaluate, {}), (engine.predict, dict(out=sys.argv[4], figures=2))):
    try:
        call(sys.argv[1], **settings, **more)
    except ConvoyError as error:
        print(json.dumps([error.kind, error.exit_code, error.everywhere, str(error)]))
processes.leave()
"""


@pytest.mark.multiprocess
def test_two_processes_predict_and_export_what_one_does(run, tmp_path):
    two, one = tmp_path / "two.safetensors", tmp_path / "one.safetensors"
    undrawn = tmp_path / "undrawn.npz"
    lines = runs.lines_by_process(TWO, run, tmp_path / "p.npz", two, undrawn, processes=2)
    engine.export(run, one)
    np.testing.assert_equal(load_file(two), load_file(one))
    whole = engine.predict(run)
    names, labels, ids = json.loads(lines["0"][-5])
    assert (names, labels, ids) == (sorted(whole), whole["label"].tolist(), NAMES)
    assert json.loads(lines["0"][-4]) == [list(range(37)), whole["label"].tolist(), NAMES]  # of buckets
    names, labels, ids = json.loads(lines["1"][-5])
    assert (set(whole) - set(names), labels, ids) == ({"example/key", "id", "raw"}, whole["label"].tolist(), None)
    assert json.loads(lines["0"][-3]) == json.loads(lines["1"][-3]) == SIZES
    assert lines["0"][-2:] == lines["1"][-2:]  # the error of a figure, which process 0 alone draws
    for line in lines["0"][-2:]:
        kind, code, everywhere, text = json.loads(line)
        assert (kind, code, everywhere) == ("TaskError", 1, True) and text.startswith("Broken.figure failed: ValueErr")
    assert not undrawn.exists()


def test_command_line_predicts_with_data_of_its_own(run, tmp_path, capsys):
    from engine.cli.main import main

    out = tmp_path / "p.npz"
    words = ["predict", str(run), f"--out={out}", f"--data.target={DATA}", "--data.n", "7", "--step=latest"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert f"wrote predictions of 7 examples to {out}" in captured.out
    assert "predicting: 7/7 examples" in captured.err
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    assert main(words) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert hashlib.sha256(out.read_bytes()).hexdigest() == digest
    assert main(["evaluate", str(run), "--evaluations.heldout.data.n=5"]) == 0
    assert "heldout/accuracy: " in capsys.readouterr().out


def test_run_in_a_bucket_is_used_without_a_mount(run, bucket, tmp_path, caplog, capsys):
    upload(bucket, run, "team/run")
    address, local = "s3://data/team/run", engine.predict(run, step=2)
    found = engine.predict(address, step=2)
    assert all(np.array_equal(found[name], local[name]) for name in local)
    assert engine.evaluate(address) == engine.evaluate(run)
    assert "s3://data/team/run/evaluations.jsonl: is read without a mount, so the results are not stored" in caplog.text
    assert engine.load(address).step == 4
    assert inference.export(address, tmp_path / "a") == inference.export(run, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert main(["checkpoints", address]) == 0 and main(["goodput", address]) == 0
    assert not mounts._mounts
    with pytest.raises(RunError, match=r"s3://data/none: is not a run directory, it has no config\.txt"):
        engine.load("s3://data/none")
    manifest = "team/run/checkpoints/2/manifest.json"
    bucket.write(manifest, bucket.read(manifest).result().value[:-9]).result()
    capsys.readouterr()
    assert main(["checkpoints", address]) == 43
    printed = capsys.readouterr()
    assert "step        2  DAMAGED  manifest.json is not the text of a manifest" in printed.out
    assert "step        4  " in printed.out
    assert "s3://data/team/run: 1 of 2 checkpoints are damaged" in printed.err


def test_format_of_a_benchmark_has_every_example_in_its_own_precision(run, tmp_path):
    out = tmp_path / "deep" / "results.json"
    settings: dict[str, Any] = dict(task=Boxes(), batch_size=8, out=out, format="nuscenes")
    settings["overrides"] = ["data.on_error=skip"]
    assert engine.predict(run, data=Samples(bad=[3]), **settings) == {}
    results = json.loads(out.read_text())["results"]
    assert list(results) == [f"token{index}" for index in (0, 1, 2, 4)]
    assert [rows[0]["translation"][0] for rows in results.values()] == [FAR + 1] * 4
    assert {"results.json", "results.json.lineage.json"} <= {path.name for path in out.parent.iterdir()}
    with pytest.raises(ConfigError, match="exists already"):
        engine.predict(run, data=Samples(), **settings)


def test_format_names_missing_predictions_and_entries_and_leaves_no_file(run, tmp_path):
    settings: dict[str, Any] = dict(batch_size=8, out=tmp_path / "results.json", format="nuscenes")
    with pytest.raises(TaskError, match=r"'nuscenes': it needs the prediction 'score'.*Found: attribute, boxes, label"):
        engine.predict(run, data=Samples(), task=Boxes(without="score"), **settings)
    with pytest.raises(DataError, match=r"example 0 of .*needs the entry 'sample': token of the sample.*Found: x, "):
        engine.predict(run, data=Samples(without="sample"), task=Boxes(), **settings)
    assert list(tmp_path.iterdir()) == []
