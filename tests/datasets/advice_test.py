import numpy as np
import pytest

from engine.data.source import ArraySource
from engine.data.stages import STAGES
from engine.datasets.advice import advice, notes
from engine.datasets.statistics import Statistics

SOURCE = ArraySource({"x": np.zeros(1)})


def statistics(**arrays):
    found = Statistics()
    for index in range(len(next(iter(arrays.values())))):
        found.add(index, {name: rows[index] for name, rows in arrays.items()})
    return found


@pytest.mark.parametrize(
    ("slow", "waiting", "text"),
    [
        ("read", 0.9, "most of it waiting for storage: use more data.threads, or a local disk. Examples are small"),
        ("read", 0.0, "reading takes 97% of the time, and most of it is computation. Use data.workers="),
        ("decode", 0.0, "decoding takes 97% of the time: use data.workers="),
        ("transform", 0.0, "the transform takes 97% of the time: use data.workers="),
        ("collate", 0.0, "stacking takes 97% of the time: store smaller types (uint8 instead of float32)"),
    ],
)  # fmt: skip
def test_advice_names_the_stage_that_dominates(slow, waiting, text):
    stages = {name: 1.0 if name == slow else 0.01 for name in STAGES[:4]}
    found = advice(statistics(x=np.zeros((2, 3), np.float32)), {"stages_s": stages, "waiting_s": waiting})
    assert len(found) == 1 and text in found[0]


def test_fast_datasets_and_wide_types():
    found = advice(statistics(x=np.zeros(2)), {"stages_s": {"read": 1e-5}, "waiting_s": 0.0})
    assert found == ["one process reads 100,000 examples/s, which is enough for most models."]
    found = advice(statistics(x=np.zeros(2)), {"stages_s": {"read": 1.0}, "waiting_s": 0.0})
    assert found[1].startswith("x is stored in 64 bits, and the devices use 32.")
    assert advice(Statistics(), {"stages_s": {}, "waiting_s": 0.0}) == []


def test_rare_classes_and_shapes_are_noted():
    images = [np.zeros((2, n), np.uint8) for n in (1, 2, 3)]
    images[0][:] = 1
    assert notes(SOURCE, statistics(image=images)) == [
        "image has 3 different shapes, and a batch needs one. Crop or pad it."
    ]
    labels = np.array([0] * 500 + [1] * 490 + [2, 2])
    assert notes(SOURCE, statistics(label=labels)) == ["label: 1 of 3 classes have less than 1% of the labels."]
