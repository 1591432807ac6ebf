"""What `Joint` accepts, its length, its shapes, its fingerprint, and evaluations."""

import jax
import numpy as np
import pytest

from engine import ArraySource, Balanced, Joint, Padded
from engine.base.errors import DataError
from engine.data.batches import OrderedBatches
from engine.data.source import example_spec, limited
from tests import drives, zoo
from tests.joint import twin


class Unknown:
    """A stream of unknown length."""

    shards = 1

    def open(self, shard, position):
        yield from ((item, item + 1) for item in range(position or 0, 9))

    def decode(self, item):
        return {"number": np.int32(item)}


def test_epoch_is_that_of_the_named_dataset_or_of_the_one_with_most_steps():
    assert (twin.joint().epoch, len(twin.joint())) == ("lanes", 27)
    assert len(twin.joint(epoch="boxes")) == 20
    assert len(twin.joint(every={"lanes": 4})) == 27 * 4
    assert len(twin.joint(choose={"boxes": 3, "lanes": 1})) == 27 * 4
    found = Joint({"boxes": twin.boxes(), "stream": Unknown()}, epoch="boxes")
    assert len(found) == 40 and len(found.counted()) == 40


def test_limit_takes_the_first_examples_that_the_bundles_hold():
    found = limited(twin.joint(), 5)
    assert {name: len(part) for name, part in found.sources.items()} == {"boxes": 10, "lanes": 5}
    assert len(found) == 5 and found.fingerprint() != twin.joint().fingerprint()


def test_limit_counts_the_bundles_without_a_dataset_too():
    for settings, sizes in (({"every": {"lanes": 4}}, (16, 2)), ({"choose": {"boxes": 1, "lanes": 3}}, (4, 6))):
        found = limited(twin.joint(**settings), 8)
        assert tuple(len(part) for part in found.sources.values()) == sizes and len(found) == 8


def test_fingerprint_depends_on_rows_steps_and_each_dataset():
    others = [
        twin.joint(),
        twin.joint(rows={"boxes": 3}),
        twin.joint(every={"lanes": 2}),
        twin.joint(choose={"boxes": 1, "lanes": 1}),
        Joint({"boxes": twin.boxes(seed=8), "lanes": twin.lanes()}, {"boxes": 2}),
    ]
    assert len({found.fingerprint() for found in others}) == len(others)
    assert (
        twin.joint().fingerprint() == Joint({"lanes": twin.lanes(), "boxes": twin.boxes()}, {"boxes": 2}).fingerprint()
    )


def test_shapes_are_those_of_each_set_of_datasets_and_the_largest_is_last():
    lines = Padded(twin.Polylines(), lengths=[2, 5], fields="at")
    found = Joint({"boxes": twin.boxes(), "lines": lines}, {"lines": 2}, every={"lines": 3})
    assert found.shape_names() == ["boxes", "boxes, lines 2", "boxes, lines 5"] and found.consecutive == 0
    assert example_spec(found) == found.shape_specs()[-1]
    assert found.shape_specs()[-1]["lines"]["at"].shape == (2, 5, 2)
    assert len(twin.joint().shape_specs()) == 1 and twin.joint().consecutive == 1
    long = Padded(twin.Polylines(), lengths=[2, 3, 4, 5, 6], fields="at")
    with pytest.raises(DataError, match=r"the batches have 25 shapes, allowed are 16"):
        Joint({"a": long, "b": long}).shape_specs()


def test_evaluation_reads_each_example_once_with_the_name_of_its_dataset():
    lines = Padded(twin.Polylines(), lengths=[2, 5], fields="at")
    for part, name in ((twin.lanes(), "picture"), (lines, "number")):
        whole, alone = OrderedBatches(Joint({"some": part}), 8), OrderedBatches(part, 8)
        assert len(whole) == len(alone)
        for n in range(len(whole)):
            zoo.assert_equal(whole[n].examples["some"], alone[n].examples)
            np.testing.assert_array_equal(whole[n].weight, alone[n].weight)
            assert whole.shape(n) == alone.shape(n) and name in whole[n].examples["some"]


def test_text_stays_in_examples_and_leaves_batches():
    named = ArraySource({"x": np.arange(4.0, dtype=np.float32), "name": np.array(["a", "b", "c", "d"])})
    found = Joint({"named": named, "lanes": twin.lanes()}, {"named": 2})
    assert found[0]["named"]["name"].tolist() == ["a", "b"] and found[1]["named"]["name"].tolist() == ["c", "d"]
    assert [path for path, _ in jax.tree.leaves_with_path(example_spec(found)["named"])] == [
        (jax.tree_util.DictKey("x"),)
    ]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rows": {"boxes": 0}}, r"rows of boxes is 0: allowed are whole numbers from 1"),
        ({"rows": {"boxes": 1.5}}, r"rows of boxes is 1.5"),
        (
            {"rows": {"box": 2}},
            r"rows has box, but no dataset has that name. Did you mean boxes\? Datasets: ",
        ),
        ({"every": {"lines": 2}}, r"every has lines, but no dataset"),
        ({"every": {"boxes": 2, "lanes": 2}}, r"the first step would take no dataset"),
        ({"every": {"lanes": 2}, "choose": {"boxes": 1, "lanes": 1}}, r"every and choose are both given"),
        ({"choose": {"boxes": 1}}, r"choose of lanes is None: allowed are numbers above 0, one for each dataset"),
        ({"weights": {"lines": 2.0}}, r"weights has lines, but no dataset"),
        ({"epoch": "lines"}, r"epoch has lines, but no dataset"),
    ],
)
def test_wrong_arguments_are_refused(settings, text):
    with pytest.raises(DataError, match=text):
        twin.joint(**settings)


@pytest.mark.parametrize("name", ["boxes/front", "", "loss", 1])
def test_names_that_metrics_cannot_have_are_refused(name):
    with pytest.raises(DataError, match=rf"a dataset has the name {name!r}. Allowed is text without '/'"):
        Joint({name: twin.boxes(), "lanes": twin.lanes()})


def test_missing_and_empty_datasets_are_refused():
    with pytest.raises(DataError, match=r"engine.Joint: no datasets. Pass at least one"):
        Joint({})
    with pytest.raises(DataError, match=r"engine.Joint: sources is a list. Pass at least one dataset"):
        Joint([twin.boxes()])  # pyright: ignore[reportArgumentType]
    empty = ArraySource({"x": np.zeros((0, 2))})
    with pytest.raises(DataError, match=r"dataset lanes \(engine.data.source.ArraySource\) has no examples. Check its"):
        Joint({"boxes": twin.boxes(), "lanes": empty})
    with pytest.raises(DataError, match=r"weights of one dataset change nothing"):
        Joint({"boxes": twin.boxes()}, weights={"boxes": 2.0})
    with pytest.raises(DataError, match=r"engine.Joint cannot be a part of another source"):
        twin.joint().sampler(0, True)
    with pytest.raises(DataError, match=r"dataset drives .* continues drives in the rows .* Use windows without carry"):
        Joint({"drives": drives.windows()})
    for part in (twin.joint(), Balanced(twin.joint(), ranks=2)):
        with pytest.raises(DataError, match=r"dataset both .* holds several datasets itself. Name all of them in one"):
            Joint({"both": part, "lanes": twin.lanes()})
