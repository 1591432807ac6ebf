"""The order of a run over several datasets: a pure function of the step, whatever reads it."""

import jax
import numpy as np
import pytest

from engine import ArraySource, Balanced, Joint, Padded, Weighted
from engine.base.errors import DataError
from engine.data.bad_examples import TolerantBatches
from engine.data.batches import Batches
from engine.data.sampling.shuffle import derive_seed
from tests import zoo
from tests.joint import twin

SEED, BUNDLES = 7, 6


class Jittered(ArraySource):
    """Lanes with a random offset."""

    def transform(self, example, rng, context):
        return {**example, "points": example["points"] + rng.normal(size=2).astype(np.float32) + context.step}


class Damaged(ArraySource):
    """Boxes of which number 5 cannot be read, each with its number."""

    def __getitem__(self, index):
        if index == 5:
            raise OSError("damaged")
        return super().__getitem__(index)


def jittered() -> Jittered:
    return Jittered(twin.lanes().arrays)


def batches(source, rows=None):
    return Batches(source, BUNDLES, SEED, True, rows)


def several(**settings):
    """Datasets with a transform, with lengths, and a stream."""
    sources = {
        "boxes": twin.boxes(),
        "lanes": jittered(),
        "lines": Padded(twin.Polylines(), lengths=[2, 5], fields="at"),
        "stream": twin.Shards(),
    }
    return Joint(sources, **{"rows": {"boxes": 2, "lines": 3}, "every": {"lines": 2, "stream": 3}, **settings})


def test_each_dataset_has_the_batches_that_it_has_alone():
    whole = batches(Joint({"boxes": twin.boxes(), "lanes": jittered()}, {"boxes": 2}, every={"lanes": 3}))
    boxes = Batches(twin.boxes(), 2 * BUNDLES, derive_seed(SEED, "boxes"), True)
    lanes = Batches(jittered(), BUNDLES, derive_seed(SEED, "lanes"), True)
    taken = 0
    for n in range(20):
        found = whole[n].examples
        alone = jax.tree.map(lambda x: x.reshape(BUNDLES, 2, *x.shape[1:]), boxes[n].examples)
        zoo.assert_equal(found["boxes"], alone)
        assert ("lanes" in found) == ((n + 1) % 3 == 0)
        if "lanes" in found:
            zoo.assert_equal(found["lanes"], lanes[taken].examples)
            taken += 1
    assert taken == 6


@pytest.mark.parametrize("processes", [4, 3, 2])
def test_other_process_counts_give_the_same_batches(processes):
    source = several()
    if BUNDLES % processes:
        rows = [np.arange(process, BUNDLES, processes) for process in range(processes)]
    else:
        size = BUNDLES // processes
        rows = [np.arange(process * size, (process + 1) * size) for process in range(processes)]
    whole, parts = batches(source), [batches(several(), own) for own in rows]
    order = np.argsort(np.concatenate(rows))
    for n in range(12):
        joined = jax.tree.map(lambda *x: np.concatenate(x)[order], *[part[n].examples for part in parts])
        zoo.assert_equal(joined, whole[n].examples)


def test_blocks_of_batches_are_the_batches():
    found = batches(twin.joint())
    assert found.block_size > 1 and batches(several()).block_size == 1
    for n, batch in enumerate(found.block(3, 9), 3):
        zoo.assert_equal(batch.examples, found[n].examples)
    part = batches(twin.joint(), np.array([1, 4]))
    zoo.assert_equal(part.block(5, 2)[1].examples, jax.tree.map(lambda x: x[[1, 4]], found[6].examples))


def test_examples_of_each_dataset_are_read_once_in_each_of_its_epochs():
    sources = {name: ArraySource({"number": np.arange(n)}) for name, n in {"boxes": 24, "lanes": 6}.items()}
    found = batches(Joint(sources, {"boxes": 2}, every={"lanes": 2}))
    boxes = np.concatenate([found[n].examples["boxes"]["number"].reshape(-1) for n in range(4)])
    lanes = np.concatenate([found[n].examples["lanes"]["number"] for n in (1, 3)])
    assert sorted(boxes) == sorted([*range(24)] * 2) and sorted(lanes) == sorted([*range(6)] * 2)


def test_marks_of_a_stream_open_it_where_a_resume_reads_on():
    def reader(stream):
        return Batches(Joint({"boxes": twin.boxes(), "stream": stream}, every={"stream": 2}), BUNDLES, SEED, False)

    found = reader(twin.Shards())
    for n in range(7):
        found[n]
    marks = found.marks(7)
    assert marks and all(key.startswith("stream/") for key in marks)
    stream = twin.Shards()
    resumed = reader(stream)
    stream.opened.clear()  # the first example was read for its shapes
    resumed.seek(marks)
    for n in range(7, 11):
        zoo.assert_equal(resumed[n].examples, found[n].examples)
    assert stream.opened and all(position for _, position in stream.opened[:3]), stream.opened


def test_bad_example_gives_its_bundle_weight_0_and_a_filler():
    boxes = Damaged({"number": np.arange(12)})
    source = Joint({"boxes": boxes, "lanes": twin.lanes()}, {"boxes": 2})
    found, bad = TolerantBatches(batches(source)), []
    for n in range(2):
        batch = found[n]
        bad += batch.bad
        assert (batch.batch.weight == 0).sum() == len(batch.bad)
        assert 5 not in batch.batch.examples["boxes"]["number"]
    assert len(bad) == 2 and "Example 5 of tests.joint.sampler_test.Damaged" in bad[0].error


def test_bundles_are_dealt_to_ranks_by_the_costs_of_all_their_examples():
    sources = {name: Padded(twin.Polylines(), lengths=5, fields="at") for name in ("far", "near")}
    source = Balanced(Joint(sources, {"near": 2}), ranks=3)
    plain, dealt = batches(source.source), batches(source)
    sums = []
    for n in range(4):
        costs = [
            np.add(*(examples["mask"].reshape(BUNDLES, -1).sum(1) for examples in found[n].examples.values()))
            for found in (plain, dealt)
        ]
        assert sorted(costs[0]) == sorted(costs[1])
        sums.append([np.ptp(part.reshape(3, -1).sum(1)) for part in costs])
        sizes = dealt.sizes(n)
        assert sizes is not None
        np.testing.assert_array_equal(sizes.elements, costs[1])
    before, after = np.sum(sums, axis=0)
    assert after < before
    with pytest.raises(DataError, match=r"costs of the examples of engine.data.source.ArraySource are not known"):
        batches(Balanced(twin.joint(), ranks=3))


def test_tags_of_a_dataset_are_counted_under_its_name():
    weather = np.array(["day", "night"])[np.arange(40) % 2]
    source = ArraySource({"x": np.arange(40), "weather": weather})
    tagged = Joint({"boxes": Weighted(source, tags="weather", balance={"day": 3, "night": 1}), "lanes": twin.lanes()})
    found = batches(tagged)
    assert found.tag_names == ("boxes/day", "boxes/night")
    counts = [found.tag_counts(n) for n in range(20)]
    total = {name: sum(count.get(name, 0) for count in counts) for name in found.tag_names}
    assert total == {"boxes/day": 90, "boxes/night": 30}
