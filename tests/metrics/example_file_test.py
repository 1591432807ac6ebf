"""The file of the metrics of single examples: reading gives what was written; what cannot be stored is named."""

import math
import types
from typing import Any

import jax
import numpy as np
import pytest

from engine.base.errors import ConfigError, RunError, TaskError
from engine.driving.detection import AveragePrecision
from engine.metrics import example_file
from engine.metrics.mean import Mean
from engine.metrics.metric import Metric, array_fields, collected, settings
from engine.metrics.slices import Examples


def distance(predicted: Any, boxes: Any) -> Any:
    return np.abs(predicted - boxes).sum(-1)


class Kept(Metric):
    """A metric with each kind of field."""

    total: jax.Array
    grid: jax.Array
    entries: jax.Array = collected(fill=math.nan)
    names: tuple[str, ...] = ("a", "b")
    limits: tuple[tuple[float, int], ...] = ((0.5, 1),)
    score: Any = distance

    def compute(self):
        return float(self.total)


def kept_metric(*fields: Any, **more: Any) -> Kept:
    """Returns a state on the host, where fields are of numpy."""
    return Kept(*fields, **more)


def examples(count: int = 5) -> Examples:
    random = np.random.default_rng(0)
    kept = kept_metric(
        np.arange(count, dtype=np.int32),
        random.normal(size=(count, 2, 3)).astype(np.float32),
        random.normal(size=(count, 4)),
    )
    of_numpy: Any = np.ones(count)
    mean = Mean(of_numpy, of_numpy * 0)
    slices = {"night/rain": np.arange(count) % 2 == 0}
    numbers = np.arange(count)
    tags = {"scene": np.array(["höhe/1", "", "a b", "a\nb", "0"])[:count], "time": numbers / 3, "city": numbers % 2}
    return Examples(numbers * 3, slices, {"own": kept, "a.b": mean}, tags, "5 scans")


def test_file_has_the_arrays_and_settings_of_each_metric(tmp_path):
    path, wanted = tmp_path / "a.parquet", examples()
    path.write_bytes(example_file.to_parquet(wanted))
    found = example_file.read_parquet(path)
    assert (found.indices == wanted.indices).all()
    assert found.content == example_file.content_of(path) == "5 scans"
    assert (found.slices["night/rain"] == wanted.slices["night/rain"]).all()
    assert found.tags.keys() == wanted.tags.keys()
    for name, values in wanted.tags.items():
        assert found.tags[name].dtype.kind == values.dtype.kind and (found.tags[name] == values).all(), name
    assert found.metrics.keys() == wanted.metrics.keys()
    for name, metric in wanted.metrics.items():
        assert type(found.metrics[name]) is type(metric) and settings(found.metrics[name]) == settings(metric)
        for field, _ in array_fields(metric):
            stored, written = getattr(found.metrics[name], field), getattr(metric, field)
            assert stored.dtype == written.dtype and (stored == written).all(), field


def test_no_examples_are_stored_too(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(example_file.to_parquet(examples(count=0)))
    found = example_file.read_parquet(path)
    kept: Any = found.metrics["own"]
    assert kept.grid.shape == (0, 2, 3)
    assert found.tags["scene"].dtype.kind == "U"


def test_settings_of_metrics_of_the_engine_can_be_stored():
    box = np.zeros((2, 3, 2), np.float32)
    metric = AveragePrecision.of(box, box[..., 0], box[..., 0], box, box[..., 0].astype(int), classes=("car", "bus"))
    example_file.check_storable({"ap": metric}, 10, "evaluations.test")


@pytest.mark.parametrize("setting", [lambda predicted, boxes: 0, (1, object())])
def test_setting_that_cannot_be_stored_is_named(setting):
    with pytest.raises(TaskError, match=r"evaluations\.test\.per_example: the metric 'own' of the class Kept cannot"):
        example_file.check_storable({"own": kept_metric(*[np.zeros(2)] * 3, score=setting)}, 10, "evaluations.test")


def test_files_beyond_the_limit_are_refused_with_their_size():
    wide = kept_metric(np.zeros(2), np.zeros((2, 1000)), np.zeros((2, 100)))
    with pytest.raises(ConfigError, match=r"found 1,000,000 examples of 4,404 bytes, 4\.1 GiB. Allowed are 4 GiB"):
        example_file.check_storable({"own": wide}, 10**6, "evaluations.test")


def test_missing_pyarrow_is_an_error_that_names_the_setting(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(
        ConfigError, match=r"evaluations\.test\.per_example: needs pyarrow, .*: pip install .*\[parquet\]'\.$"
    ):
        example_file.check_storable({}, 1, "evaluations.test")


@pytest.mark.parametrize("damage", ["cut", "foreign", "class"])
def test_damaged_file_is_one_sentence(tmp_path, damage, monkeypatch):
    path, content = tmp_path / "a.parquet", example_file.to_parquet(examples())
    if damage == "foreign":
        arrow: types.ModuleType = example_file.pyarrow("")
        arrow.parquet.write_table(arrow.table({"x": [1]}), path)
    else:
        path.write_bytes(content[:-20] if damage == "cut" else content)
    if damage == "class":
        monkeypatch.delattr(__import__("sys").modules[__name__], "Kept")
    with pytest.raises(RunError, match=r"a\.parquet: cannot be read as the metrics of examples"):
        example_file.read_parquet(path)


@pytest.mark.parametrize("stored", [b"{", b"[]", b"\xff"])
def test_damaged_metadata_is_one_sentence(tmp_path, stored):
    arrow: types.ModuleType = example_file.pyarrow("")
    path = tmp_path / "a.parquet"
    arrow.parquet.write_table(arrow.table({"x": [1]}).replace_schema_metadata({b"convoy": stored}), path)
    for read in (example_file.read_parquet, example_file.content_of):
        with pytest.raises(RunError, match=r"a\.parquet: cannot be read as the metrics of examples"):
            read(path)
