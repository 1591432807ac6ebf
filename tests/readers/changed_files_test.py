"""A run ends when a file that it reads is overwritten in place, with records that are as valid as those before."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from flax import nnx

import engine
from engine import Loss, Task
from engine.data import file_states
from engine.data.file_states import FileChangedError
from engine.data.source import ArraySource
from engine.readers.array_record import write_array_record
from tests import runs
from tests.readers.wire_format import example, write_tf_record

EXAMPLES = 40
TOO_MANY = "30000 steps"  # so many take a minute


class Fit(Task):
    """A linear model of the two numbers of a record."""

    def build(self, rngs):
        return nnx.Linear(2, 1, rngs=rngs)

    def loss(self, model, batch, rng):
        x, y = (batch[name] if name in batch else batch[f"{name}.npy"] for name in "xy")
        return Loss.of((model(x)[:, 0] - y) ** 2)


class Overwrite:
    """A hook that overwrites a file in place."""

    def __init__(self, path, other):
        self.path, self.other = path, other

    def run(self, trainer, state, step):
        if self.other is not None:
            with open(self.path, "r+b", buffering=0) as file:  # no reader finds the file empty
                file.write(Path(self.other).read_bytes())
                file.truncate()
            self.other = None


def tf_record(path, x, y):
    write_tf_record(path, (example(x=row.tolist(), y=[float(value)]) for row, value in zip(x, y, strict=True)))


def parquet(path, x, y):
    pyarrow.parquet.write_table(pa.table({"x": list(x), "y": y}), path)


def web_dataset(path, x, y):
    with tarfile.open(path, "w") as file:
        for number, values in enumerate(zip(x, y, strict=True)):
            for name, value in zip("xy", values, strict=True):
                content = io.BytesIO()
                np.save(content, value)
                member = tarfile.TarInfo(f"{number}.{name}.npy")
                member.size = len(content.getvalue())
                file.addfile(member, io.BytesIO(content.getvalue()))


def json_lines(path, x, y):
    path.write_text("".join(json.dumps({"x": a.tolist(), "y": float(b)}) + "\n" for a, b in zip(x, y, strict=True)))


def array_record(path, x, y):
    write_array_record(ArraySource({"x": x, "y": y}), str(path))


FORMATS = {
    "TFRecord": tf_record,
    "Parquet": parquet,
    "WebDataset": web_dataset,
    "JsonLines": json_lines,
    "ArrayRecordSource": array_record,
}


def overwritten(folder, reader, monkeypatch, total, **data):
    """Returns the config and the hooks of a run on a file that its first hook overwrites."""
    monkeypatch.setattr(file_states, "PERIOD_S", 0.001)
    paths = [folder / name for name in ("data", "other")]
    for number, path in enumerate(paths):
        x = np.random.default_rng(number).normal(size=(EXAMPLES, 2)).astype(np.float32)
        FORMATS[reader](path, x, x.sum(axis=1))
    config = runs.config(
        task={"target": "tests.readers.changed_files_test.Fit"},
        data={"target": f"engine.readers.{reader}", "pattern": str(paths[0]), **data},
        evaluations={},
        train__total=total,
        log__every="1000 steps",
    )
    hook = {"target": "tests.readers.changed_files_test.Overwrite", "every": "7 steps", "path": str(paths[0])}
    return config, {"overwrite": {**hook, "other": str(paths[1])}}


@pytest.mark.parametrize("reader", FORMATS)
def test_run_ends_when_its_file_is_overwritten(reader, tmp_path, monkeypatch):
    config, hooks = overwritten(tmp_path, reader, monkeypatch, TOO_MANY, on_error="skip")
    with pytest.raises(FileChangedError, match=rf"{tmp_path}/data was changed at 20.* noticed at 20"):
        engine.train(config, hooks=hooks, workdir=tmp_path / "run")
    status = runs.status(tmp_path / "run")
    assert status["state"] == "failed" and status["step"] < 30000


def test_run_trains_on_if_it_is_told_to(tmp_path, monkeypatch, capsys):
    config, hooks = overwritten(tmp_path, "TFRecord", monkeypatch, "20 steps", on_change="warn")
    engine.train(config, hooks=hooks, workdir=tmp_path / "run")
    assert runs.status(tmp_path / "run")["state"] == "done"
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count(f"warning: {tmp_path}/data was changed at") == 1 and "trains on (data.on_change=warn)" in log


def test_file_of_an_evaluation_is_watched(tmp_path, monkeypatch):
    config, hooks = overwritten(tmp_path, "TFRecord", monkeypatch, TOO_MANY)
    arrays = ArraySource({"x": np.ones((EXAMPLES, 2), np.float32), "y": np.ones(EXAMPLES, np.float32)})
    source = engine.readers.TFRecord(str(tmp_path / "data"))
    with pytest.raises(FileChangedError, match=rf"{tmp_path}/data was changed at"):
        engine.train(config, data=arrays, evaluation_data={"test": source}, hooks=hooks, workdir=tmp_path / "run")
