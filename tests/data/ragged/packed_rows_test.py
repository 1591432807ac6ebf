"""Packed rows of examples with ragged fields; `packing_test.py` has those of token documents."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import DataError
from engine.data.batches import Batches, OrderedBatches
from engine.data.ragged.packing import Packed
from tests import properties
from tests.data.scenes import FIELDS, Scenes, TwoAxes


def epoch(packed, number=0, seed=0):
    """Returns all rows of an epoch."""
    return Batches(packed, len(packed), seed, True)[number].examples


@given(
    sizes=st.lists(st.integers(0, 8), min_size=1, max_size=40),
    segments=st.sampled_from([None, 1, 3, 8]),
    seed=st.integers(0, 3),
)
@properties.examples(60)
def test_every_scene_is_whole_in_exactly_one_row_of_an_epoch(sizes, segments, seed):
    packed = Packed(Scenes(sizes), 8, fields=FIELDS, segments=segments)
    for number in (0, 1):
        rows = epoch(packed, number, seed)
        assert sorted(rows["scene"][rows["segment_mask"]]) == list(range(len(sizes)))
        assert segments is None or rows["segment_mask"].shape[1] == segments
        for row in range(len(packed)):
            scenes = rows["scene"][row][rows["segment_mask"][row]]
            for segment, scene in enumerate(scenes, 1):
                at = rows["segment_ids"][row] == segment
                expected = Scenes(sizes)[scene]
                assert rows["agent"][row][at].tolist() == expected["agent"].tolist()
                assert rows["pair"][row][at].tolist() == expected["pair"].tolist()
                assert rows["positions"][row][at].tolist() == list(range(sizes[scene]))
            assert rows["mask"][row].sum() == sum(sizes[scene] for scene in scenes)
            assert not rows["agent"][row][~rows["mask"][row]].any()


def test_rows_have_space_for_each_axis():
    packed = Packed(TwoAxes(), {"agents": 16, "lanes": 40}, fields={"agents": FIELDS, "lanes": "lane"})
    rows = epoch(packed)
    assert rows["agent"].shape[1] == 16 and rows["lane"].shape[1:] == (40, 2)
    assert sorted(rows["scene"][rows["segment_mask"]]) == list(range(15))
    for row in range(len(packed)):
        lanes = rows["segment_ids"]["lanes"][row]
        for segment, scene in enumerate(rows["scene"][row][rows["segment_mask"][row]], 1):
            assert (rows["lane"][row][lanes == segment] == scene).all()
            assert (lanes == segment).sum() == 20 - Scenes().sizes[scene]
            assert (rows["segment_ids"]["agents"][row] == segment).sum() == Scenes().sizes[scene]


def test_split_examples_fill_every_row_but_the_last():
    sizes = [size for size in Scenes().sizes if size]
    packed = Packed(Scenes(sizes), 6, fields=FIELDS, split=True)
    rows = epoch(packed, 1)
    assert np.sort(rows["agent"][rows["mask"]]).tolist() == list(range(1, sum(sizes) + 1))
    assert np.sort((~rows["mask"]).sum(1)).tolist() == [0] * (len(packed) - 1) + [-sum(sizes) % 6]
    ends = np.cumsum(sizes)
    for agents, segments, scenes in zip(rows["agent"], rows["segment_ids"], rows["scene"], strict=True):
        inside = segments > 0
        assert (scenes[segments[inside] - 1] == np.searchsorted(ends, agents[inside])).all()


def test_evaluation_packs_scenes_in_the_stored_order_once():
    packed = Packed(Scenes(), 16, fields=FIELDS)
    ordered = OrderedBatches(packed, 2)
    batches = [ordered[n] for n in range(len(ordered))]
    scenes = [
        b.examples["scene"][row][b.examples["segment_mask"][row]] for b in batches for row in (0, 1) if b.weight[row]
    ]
    assert sorted(np.concatenate(scenes)) == list(range(15))


def test_text_of_the_scenes_becomes_one_entry_a_segment():
    class Named(Scenes):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "name": f"scene-{index}"}

    row = Packed(Named([2, 3]), 8, fields=FIELDS, segments=3)[0]
    assert row["name"].tolist() == ["scene-0", "scene-1", ""]


def test_fingerprint_depends_on_the_fields_and_segments():
    packings = [Packed(Scenes(), 16, fields=FIELDS), Packed(Scenes(), 16, fields="agent")]
    packings += [Packed(Scenes(), 16, fields=FIELDS, segments=9), Packed(Scenes(), 17, fields=FIELDS)]
    assert len({packed.fingerprint() for packed in packings}) == 4


class Grown(Scenes):
    """The third scene differs from what the index and the other scenes say."""

    def __init__(self, **changes):
        super().__init__()
        self.changes = changes

    def __getitem__(self, index):
        return {**super().__getitem__(index), **(self.changes if index == 2 else {})}


@pytest.mark.parametrize(
    ("source", "settings", "text"),
    [
        (Scenes(), {"length": 12}, r"Example 14 of .*Scenes has 16 elements, but a row has space for 12. .*split=True"),
        (Scenes(), {"length": 0}, r"length = 0: allowed are 1 element and more"),
        (Scenes(), {"segments": 0}, r"segments = 0: allowed are 1 example and more"),
        (Scenes([]), {}, r"no examples. Packing needs at least one"),
        (Scenes(), {"fields": None, "segments": 3}, r"token documents have one length and no `segments`. Name the"),
        (Scenes(), {"split": True, "segments": 3}, r"split = True allows one axis and no `segments`. Use split=False"),
        (Scenes(), {"lengths": [1]}, r"the length index has shape \[1\], .* one for each of the 15 examples"),
        (
            Grown(agent=np.arange(4), pair=np.ones((4, 2), np.float32)),
            {},
            r"Example 2 of .*Grown has 4 elements, but its length index says 9. Compute the length index again",
        ),
        (
            Grown(scene=np.float32(1)),
            {},
            r"Example 2 of .*Grown has .*, scene float32\[\], other examples have .*, scene int32\[\]. Bring all",
        ),
    ],
)
def test_invalid_arguments_and_examples_raise_data_error(source, settings, text):
    with pytest.raises(DataError, match=text):
        epoch(Packed(source, **{"length": 16, "fields": FIELDS, **settings}))
