"""Event files hold numbers, histograms, tables and images under their names."""

from typing import Any

import numpy as np
from tensorboardX.proto import plugin_hparams_pb2

from engine.base.duration import Duration
from engine.config.schema import Config, Evaluation, Hook, Log, Train
from engine.metrics.results import Bins, Curve, Image, Table
from engine.observe.drawing import SIZE, png
from engine.observe.tensorboard import EventFiles, hyperparameters
from tests.observe.event_file import read
from tests.observe.images import decode

_hparams: Any = plugin_hparams_pb2  # its names are made at import
HParamsPluginData = _hparams.HParamsPluginData


def test_tags_are_grouped(tmp_path):
    files = EventFiles(tmp_path)
    files.add([{"step": 1, "batch": 0, "loss": 1.0, "learning_rate": 0.1, "step_time_s": 0.2}])
    files.add([{"step": 1, "compile_s": 3.0}, {"step": 1, "heldout/loss": 2.0, "train/loss": 4.0}])
    files.flush()
    files.close()
    assert set(read(tmp_path)) == {
        "train/loss", "train/learning_rate", "system/step_time_s", "system/compile_s", "heldout/loss",
        "evaluation train/loss",
    }  # fmt: skip


def test_settings_that_are_no_defaults_are_hyperparameters(tmp_path):
    config = Config(name="a", train=Train(total=Duration(3, "steps"), seed=7), log=Log(tensorboard=False))
    settings = hyperparameters(config)
    assert settings == {
        "optimizer.learning_rate": 1e-3, "train.total": "3 steps", "train.global_batch_size": 128, "train.seed": 7,
        "train.precision": "float32",
    }  # fmt: skip
    files = EventFiles(tmp_path, lambda: settings)
    files.add([{"step": 1, "loss": 1.0}])
    files.flush()
    files.close()
    content = read(tmp_path)["_hparams_/session_start_info"].metadata.plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    assert (found["train.seed"].number_value, found["train.total"].string_value) == (7.0, "3 steps")


def test_settings_that_only_measure_are_no_hyperparameters():
    config = Config(evaluations={"heldout": Evaluation(worst=3)}, hooks={"probe": Hook(target="a.B")})
    assert hyperparameters(config) == hyperparameters(Config())


def test_each_kind_of_result_is_written(tmp_path):
    files = EventFiles(tmp_path)
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    row = {"loss": 0.5, "image": Image(pixels), "file": Image(png(pixels)), "vector": np.ones(3), "flag": True}
    row |= {"curve": Curve(np.arange(3), np.arange(3)), "bins": Bins(np.array([0.0, 2, 4]), np.array([3, 1]))}
    row |= {"worst": Table({"id": ["a|b", "c"], "loss": [0.5, 1]})}
    files.add([{"step": 7, "time": 1.0, **row}])
    files.flush()
    files.close()
    found = read(tmp_path)
    assert set(found) == {"loss", "image", "file", "curve", "bins", "worst"}
    assert found["loss"].simple_value == 0.5
    np.testing.assert_array_equal(decode(found["image"].image.encoded_image_string), pixels)
    assert found["file"].image.encoded_image_string == found["image"].image.encoded_image_string
    assert (found["curve"].image.height, found["curve"].image.width) == (SIZE, SIZE)
    assert found["worst"].metadata.plugin_data.plugin_name == "text"
    assert found["worst"].tensor.string_val == [b"| id | loss |\n| --- | --- |\n| a\\|b | 0.5 |\n| c | 1 |"]
    histogram = found["bins"].histo
    assert (histogram.num, histogram.sum, histogram.min, histogram.max) == (4, 6, 0, 4)
    assert (list(histogram.bucket_limit), list(histogram.bucket)) == ([0, 2, 4], [0, 3, 1])
