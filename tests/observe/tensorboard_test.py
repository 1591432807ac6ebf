"""Event files hold numbers, histograms, tables and images under their names."""

import struct

import numpy as np
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue], made at import

from engine.metrics.results import Bins, Curve, Image, Table
from engine.observe.drawing import SIZE, png
from engine.observe.tensorboard import EventFiles
from tests.observe.images import decode


def test_each_kind_of_result_is_written(tmp_path):
    files = EventFiles(tmp_path)
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    row = {"loss": 0.5, "image": Image(pixels), "file": Image(png(pixels)), "vector": np.ones(3), "flag": True}
    row |= {"curve": Curve(np.arange(3), np.arange(3)), "bins": Bins(np.array([0.0, 2, 4]), np.array([3, 1]))}
    row |= {"worst": Table({"id": ["a|b", "c"], "loss": [0.5, 1]})}
    files.add([{"step": 7, "time": 1.0, **row}])
    files.flush()
    files.close()
    (file,) = tmp_path.iterdir()
    data, found = file.read_bytes(), {}
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
        found |= {value.tag: value for value in event.summary.value}
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
