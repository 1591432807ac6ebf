import math

from engine.planning.candidates import Choices, meshes, settings
from tests.planning import tiny


def test_meshes_divide_devices_and_rows():
    choices = Choices(64, ("data", "fsdp", "tensor"), 1, ("none",), ("float32",))
    found = list(meshes(tiny.machine("h100:1x8"), choices))
    assert all(math.prod(sizes) == 8 for sizes, _ in found)
    assert len(found) == 10  # 8 = 2 * 2 * 2 over three axes
    assert all(sizes[0] == sizes[3] == sizes[4] == 1 for sizes, _ in found)
    accumulated = {c.accumulate for c in settings(found[0], choices)}
    assert accumulated == {1, 2, 4, 8, 16, 32, 64}  # the first mesh is tensor=8


def test_repeats_of_a_pipeline_divide_its_layers_and_its_microbatches():
    choices = Choices(24, ("data", "pipeline"), 12, ("none",), ("float32",), repeats=3)
    found = list(meshes(tiny.machine("h100:1x4"), choices))
    candidates = [c for mesh in found for c in settings(mesh, choices)]
    assert {c.axes["pipeline"] for c in candidates} == {1, 2, 4}
    assert all(c.microbatches is None or c.microbatches % c.axes["pipeline"] == 0 for c in candidates)
    six = Choices(24, ("data", "pipeline"), 6, ("none",), ("float32",), repeats=3)
    assert {sizes[0] for sizes, _ in meshes(tiny.machine("h100:1x4"), six)} == {1, 2}


def test_meshes_divide_the_batches_of_evaluations():
    choices = Choices(64, ("data", "tensor"), 1, ("none",), ("float32",), evaluations={"heldout": 6})
    assert {sizes[1] for sizes, _ in meshes(tiny.machine("h100:1x8"), choices)} == {1, 2}
