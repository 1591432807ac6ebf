"""Simulated drives: objects and the vehicle move as their labels say, and hidden objects stay labelled for a while."""

import itertools

import numpy as np

from convoy_zoo.models.street import drives
from convoy_zoo.models.street.drives import PERIOD, REMEMBERED, Drives

SWEEPS = [Drives(2, seed=3)[index] for index in range(len(Drives(2, seed=3)))]


def labelled(sweep, name):
    return sweep[name][sweep["mask"]["objects"]]


def test_drives_follow_each_other_in_order():
    source = Drives(2, seed=3)
    assert source.numbers.tolist() == sorted(source.numbers) and set(source.numbers) == {0, 1}
    assert source.frames[source.numbers == 1].tolist() == list(range(source.lengths[1]))
    assert [sweep["motion"][0] > 0 for sweep in SWEEPS] == [frame > 0 for frame in source.frames]


def test_objects_move_by_their_velocity_and_the_motion_of_the_vehicle():
    pairs = 0
    for before, after in itertools.pairwise(SWEEPS):
        if not after["motion"].any():
            continue
        old, new = labelled(before, "boxes"), labelled(after, "boxes")
        wanted = old[:, :2] + PERIOD * old[:, 7:9] - after["motion"][:2]
        apart = np.linalg.norm(wanted[:, None] - new[None, :, :2], axis=-1)
        same = (np.abs(old[:, None, 3:6] - new[None, :, 3:6]) < 1e-5).all(-1)
        assert (apart[same] < 1e-4).all()
        pairs += same.sum()
    assert pairs > 100


def test_hidden_objects_are_labelled_as_long_as_they_are_remembered():
    hits = [labelled(sweep, "hits") for sweep in SWEEPS]
    hidden = np.concatenate(hits) == 0
    assert 0.01 < hidden.mean() < 0.2
    assert not any((found == 0).any() for found, sweep in zip(hits, SWEEPS, strict=True) if not sweep["motion"].any())
    sizes = [labelled(sweep, "boxes")[:, 3:6] for sweep in SWEEPS]
    for number in range(1, len(SWEEPS)):
        for size in sizes[number][hits[number] == 0]:  # seen in one of the sweeps before
            recent = range(max(0, number - REMEMBERED), number)
            assert any(((np.abs(sizes[n] - size) < 1e-5).all(1) & (hits[n] > 0)).any() for n in recent)


def test_windows_continue_drives():
    source = drives.windows(2, seed=3, length=4)
    first = source[0]
    assert first["points"].shape[:1] == (4,) and first["sequence"]["starts"] and first["sequence"]["valid"].all()
    np.testing.assert_array_equal(first["points"][3], SWEEPS[3]["points"])
