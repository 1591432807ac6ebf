"""Images that only the TensorBoard files have."""

import base64

import numpy as np

from engine.metrics.results import Curve, Image
from engine.observe.tensorboard import EventFiles
from engine.report.event_images import read_event_images
from engine.report.images import Budget


def written(folder, *rows) -> None:
    events = EventFiles(folder)
    events.add(rows)
    events.flush()
    events.close()


def content(image) -> bytes:
    return base64.b64decode(image["src"].partition(",")[2])


def test_newest_image_of_each_name_is_embedded(tmp_path):
    old, new = (np.full((4, 6, 3), gray, np.uint8) for gray in (1, 200))
    rows = [{"step": 5, "time": 1.0, "hook/map": Image(old), "hook/loss": 1.0}]
    rows += [{"step": 9, "time": 2.0, "hook/map": Image(new), "heldout/figures/0": Image(old)}]
    rows += [{"step": 9, "time": 2.0, "heldout/roc": Curve(np.arange(3.0), np.arange(3.0))}]
    written(tmp_path, *rows)
    [found] = read_event_images(tmp_path, Budget(10**6), {"heldout/roc"}, set())
    assert found["name"] == "hook/map, step 9"
    assert content(found).startswith(b"\x89PNG")
    again = read_event_images(tmp_path, Budget(10**6), {"heldout/roc"}, {content(found)})
    assert again == []


def test_images_over_the_bound_are_counted(tmp_path):
    written(tmp_path, {"step": 5, "time": 1.0, "hook/map": Image(np.zeros((4, 6, 3), np.uint8))})
    budget = Budget(10)
    assert (read_event_images(tmp_path, budget, (), ()), budget.left_out) == ([], 1)


def test_incomplete_or_damaged_file_is_read_as_far_as_possible(tmp_path):
    for step in (1, 2):
        written(tmp_path / str(step), {"step": step, "time": 1.0, "hook/map": Image(np.zeros((4, 6, 3), np.uint8))})
    both = b"".join(next((tmp_path / str(step)).iterdir()).read_bytes() for step in (1, 2))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/events.tfevents.1").write_bytes(both[:-20])
    assert [each["name"] for each in read_event_images(tmp_path / "run", Budget(10**6), (), ())] == ["hook/map, step 1"]
    (tmp_path / "run/events.tfevents.1").write_bytes(b"\xff" * 100)
    assert read_event_images(tmp_path / "run", Budget(10**6), (), ()) == []
    assert read_event_images(tmp_path / "nowhere", Budget(10**6), (), ()) == []
