import io
import zipfile

import numpy as np
import pytest

from engine.base.errors import DataError, TaskError
from engine.submissions.kitti import Format


def prediction(**changes):
    boxes = np.array([[2, 1.5, 10, 1.5, 1.6, 4, 0.25], [-2, 1.5, 20, 1.75, 0.5, 0.75, -3]])
    image = np.array([[700.0, 100, 800, 180.5], [500, 120, 520, 160]])
    return {
        "camera_boxes": boxes,
        "image_boxes": image,
        "score": np.array([0.25, 0.5]),
        "label": np.array([0, 1]),
    } | changes


def write(*pairs):
    file = io.BytesIO()
    writer = Format(file)
    for pair in pairs:
        writer.add(*pair)
    writer.finish()
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_frames_are_files_of_labels_with_scores_the_best_first():
    found = write((prediction(), {"frame": "000007"}), (prediction(valid=np.zeros(2, bool)), {"frame": "000003"}))
    assert found == {
        "000007.txt": "Pedestrian -1 -1 -2.9003 500.0000 120.0000 520.0000 160.0000 1.7500 0.5000 0.7500 -2.0000 "
        "1.5000 20.0000 -3.0000 0.5\n"
        "Car -1 -1 0.0526 700.0000 100.0000 800.0000 180.5000 1.5000 1.6000 4.0000 2.0000 1.5000 10.0000 0.2500 0.25\n",
        "000003.txt": "",
    }


def test_the_same_predictions_give_the_same_bytes():
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        writer = Format(file)
        writer.add(prediction(), {"frame": "000007"})
        writer.finish()
    assert files[0].getvalue() == files[1].getvalue()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"label": np.array([0, 3])}, "frame 000007: a predicted label is no index"),
        ({"camera_boxes": np.zeros((2, 7))}, "frame 000007: a predicted box is not finite, or has no size"),
        ({"image_boxes": np.zeros((2, 5))}, r"image_boxes \[2, 5\].* Allowed: \[boxes, 7\], \[boxes, 4\]"),
    ],
)
def test_wrong_predictions_are_named(changes, text):
    with pytest.raises(TaskError, match=text):
        write((prediction(**changes), {"frame": "000007"}))


def test_frames_that_are_no_name_or_occur_twice_are_refused():
    with pytest.raises(DataError, match="frame 'a/b': it names a file"):
        write((prediction(), {"frame": "a/b"}))
    with pytest.raises(DataError, match="frame 000007: it is in the dataset twice"):
        write((prediction(), {"frame": "000007"}), (prediction(), {"frame": "000007"}))
