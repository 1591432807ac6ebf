"""Runs, predictions and exports record what they were made from, when they are made."""

import json
from pathlib import Path

import numpy as np
import pytest

import engine
from engine.api import inference
from engine.api.lineage import record_run
from engine.base.errors import DataError
from engine.checkpoint.manifest import Manifest, manifest_hash, write_manifest
from engine.data import dataset_summary
from engine.datasets.write import write_dataset
from engine.run import lineage, status
from engine.run.directory import RunDirectory
from engine.run.lineage import CHECKPOINT, DATA
from tests import runs, zoo
from tests.predicting import NAMES, Unreadable

RECORDS = "engine.readers.array_record.ArrayRecordSource"


def config(out: Path, **settings):
    data = dict(target=RECORDS, pattern=str(out), limit=32)
    settings |= dict(train__total="2 steps", task__target="tests.predicting.Predict")
    return runs.config(data=data, evaluations=dict(heldout=dict(data=data)), **settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a dataset, a run on it, a run that starts from its weights, predictions, and exported weights."""
    folder = tmp_path_factory.mktemp("made")
    out = folder / "data" / "scans.arrayrecord"
    write_dataset(Unreadable(), out, shards=2, processes=1)
    engine.train(config(out), workdir=folder / "base")
    engine.train(config(out, init__checkpoint=str(folder / "base")), workdir=folder / "child")
    inference.predict(folder / "child", out=folder / "p.npz")
    inference.export(folder / "child", folder / "w.safetensors")
    return folder


def inputs(path: Path, kind: str) -> list[lineage.Input]:
    found = lineage.read(path / lineage.RECORD if path.is_dir() else lineage.record_path(path))
    assert found is not None
    return [one for one in found.inputs if one.kind == kind]


def test_run_records_its_data_with_the_dataset_that_it_reads(made):
    dataset = lineage.read(made / "data" / "scans.arrayrecord.lineage.json")
    assert dataset is not None and len(dataset.id) == 16
    [trained, evaluated] = inputs(made / "base", DATA)
    assert (trained.role, evaluated.role) == ("data", "evaluations.heldout.data")
    assert trained.datasets == (dataset.id,) and trained.path == str(made / "data" / "scans.arrayrecord")
    assert trained.settings == {"target": RECORDS, "limit": "32", "pattern": str(made / "data" / "scans.arrayrecord")}
    assert (trained.examples, trained.attempt) == ("32", 1)
    assert trained.id == json.loads((made / "base" / "data.json").read_text())["data"]["content"]
    names = lineage.read_names(made / "base" / "names.json.gz")[trained.key]
    assert names.values["id"] == sorted(NAMES)  # known without the dataset
    assert [Path(path).name for path in names.files] == [f"scans-0000{n}-of-00002.arrayrecord" for n in (0, 1)]
    assert min(size for size, _ in names.files.values()) > 0


def test_run_that_starts_from_weights_records_the_checkpoint_that_it_has_read(made):
    [parent] = inputs(made / "child", CHECKPOINT)
    step = made / "base" / "checkpoints" / "2"
    assert (parent.role, parent.path, parent.step) == ("init", str(made / "base"), 2)
    assert parent.id == manifest_hash(step) == json.loads((step / "manifest.json").read_text())["hash"]
    assert inputs(made / "base", CHECKPOINT) == []


def test_predictions_and_exports_record_their_checkpoint(made):
    for file in ("p.npz", "w.safetensors"):
        [weights] = inputs(made / file, CHECKPOINT)
        assert (weights.role, weights.path, weights.step) == ("weights", str(made / "child"), 2)
        assert weights.id == manifest_hash(made / "child" / "checkpoints" / "2")
        record = lineage.read(lineage.record_path(made / file))
        assert record is not None and record.id == lineage.content_id(made / file) and record.time
    [data] = inputs(made / "p.npz", DATA)
    assert data.role == "evaluations.heldout.data"
    names = lineage.read_names(made / "p.npz.names.json.gz")[data.key]
    assert names.values["id"] == sorted(NAMES)
    assert inputs(made / "w.safetensors", DATA) == []


def test_record_of_a_replaced_file_is_replaced(made, tmp_path):
    file = tmp_path / "p.npz"
    inference.predict(made / "base", out=file)
    with pytest.raises(DataError, match="gone"):
        bad = Unreadable(bad=range(3))
        inference.predict(made / "base", data=bad, out=file, overwrite=True)
    record = lineage.read(tmp_path / "p.npz.lineage.json")  # the earlier file is still there, so its record is, too
    assert record is not None and record.id == lineage.content_id(file)
    inference.predict(made / "base", data=Unreadable(n=5), out=file, overwrite=True)
    record = lineage.read(tmp_path / "p.npz.lineage.json")
    assert record is not None and record.examples == 5 == len(np.load(file)["example"])


def test_data_of_earlier_attempts_stays_in_the_record(tmp_path):
    """Also that of a run on arrays, which has no record until its data changes."""

    def start(seed: int) -> None:
        with RunDirectory.open(tmp_path / "run") as directory:
            status.write(directory.status, status.Status(state="training", attempt=directory.attempt))
            sources = {"data": zoo.source(seed=seed)}
            summaries = {"data": dataset_summary.summarize(sources["data"])}
            record_run(directory, runs.config(data__seed=seed), sources, summaries)
            directory.write_data_text(dataset_summary.to_text(summaries))

    start(0)
    first = json.loads((tmp_path / "run" / "data.json").read_text())["data"]["content"]
    (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)
    write_manifest(tmp_path / "run" / "checkpoints" / "1", Manifest(1, {}, {}))
    start(0)
    assert lineage.read_names(tmp_path / "run" / "names.json.gz") == {}
    start(7)
    second = json.loads((tmp_path / "run" / "data.json").read_text())["data"]["content"]
    assert [one.id for one in inputs(tmp_path / "run", DATA)] == [first, second] and first != second


def test_data_without_a_checkpoint_trained_on_it_is_replaced(tmp_path):
    for seed in (0, 7):
        with RunDirectory.open(tmp_path / "run") as directory:
            source = zoo.source(seed=seed)
            record_run(directory, runs.config(), {"data": source}, {"data": dataset_summary.summarize(source)})
    assert [one.id for one in inputs(tmp_path / "run", DATA)] == [zoo.source(seed=7).fingerprint()]
