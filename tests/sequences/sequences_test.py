import pickle
from typing import Any

import numpy as np
import pytest

import engine
from engine.base.errors import DataError
from engine.data.batches import Batches, OrderedBatches
from engine.data.source import BaseSource
from tests.drives import SIZES, frames

ITERATOR: Any = iter([])


def windows(length=4, carry=True, **arguments):
    return engine.Sequences(frames(), length=length, carry=carry, **arguments)


class Counted(BaseSource):
    """Frames that cannot be read together, and lists those that are read."""

    def __init__(self):
        self.inner, self.read = frames(), []

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        self.read.append(index)
        return self.inner[index]


def turn(window, rng):
    return {**window, "x": np.full_like(window["x"], rng.random())}


class Turned(engine.Sequences):
    def transform(self, window, rng):
        return turn(window, rng)


@pytest.mark.parametrize("carry", [False, True])
def test_an_example_is_a_window_of_frames(carry):
    source, found = frames(), windows(3, carry, stride=None if carry else 2)
    begin = SIZES[0] + SIZES[1]  # of the third drive
    index = next(i for i in range(len(found)) if found[i]["drive"][0] == 2)
    for name, array in source.arrays.items():
        np.testing.assert_array_equal(found[index][name], array[begin : begin + 3])
        assert found[index][name].dtype == array.dtype
    batch = found.take(np.array([index, 0, index]))
    assert batch["x"].shape == (3, 3) and batch["x"][2].tolist() == found[index]["x"].tolist()
    if carry:
        assert batch["sequence"]["starts"].tolist() == [True] * 3
        assert found[index]["sequence"]["valid"].tolist() == [True] * 3 and not found[index + 1]["sequence"]["starts"]
    else:
        assert "sequence" not in batch
    assert found.group_of(index) == "2"


@pytest.mark.parametrize("carry", [False, True])
def test_a_batch_reads_each_frame_once(carry):
    source = Counted()
    found = engine.Sequences(source, length=4, stride=None if carry else 1, carry=carry)
    source.read.clear()
    batch = Batches(found, 4, 0, True)
    assert batch.block_size == 1  # frames that are slow to read come as they are needed
    source.read.clear()
    read = [batch[n] for n in range(5)]
    used = [set(zip(one.examples["drive"].flat, one.examples["time"].flat, strict=True)) for one in read]
    assert len(source.read) == sum(map(len, used))


def test_a_text_entry_stays_on_the_host():
    source = frames(weather=np.array(["rain"] * sum(SIZES)))
    found = engine.Sequences(source, length=4)
    assert found[0]["weather"].tolist() == ["rain"] * 4
    assert "weather" not in Batches(found, 2, 0, True)[0].examples


def test_rows_read_whole_drives_in_order():
    """Each epoch reads each drive once; in each row, whole drives follow each other."""
    found = pickle.loads(pickle.dumps(windows()))
    batches = Batches(found, 4, seed=3, shuffle=True)
    steps, counts = 6, np.zeros(len(SIZES), int)
    assert "one pass through 10 drives takes 6 steps" in windows().batch_text(4)
    for epoch in range(3):
        read = [batches[epoch * steps + n] for n in range(steps)]
        for row in range(4):
            parts, starts = [], []
            for batch in read:
                if batch.weight[row]:
                    starts.append(bool(batch.examples["sequence"]["starts"][row]))
                    valid = batch.examples["sequence"]["valid"][row]
                    new = list(
                        zip(batch.examples["drive"][row][valid], batch.examples["time"][row][valid], strict=True)
                    )
                    assert starts[-1] == (new[0][1] == 0)
                    parts += new
            drives = list(dict.fromkeys(drive for drive, _ in parts))
            arrays = frames().arrays
            whole = [(drive, time) for drive in drives for time in arrays["time"][arrays["drive"] == drive]]
            assert parts == whole and sum(starts) == len(drives)
            counts[drives] += 1
    assert (counts == 3).all()


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_batches_are_the_same_for_any_number_of_processes(processes):
    whole = Batches(windows(transform=turn), 8, 5, True)
    parts = [
        Batches(windows(transform=turn), 8, 5, True, rows=np.array_split(np.arange(8), processes)[process])
        for process in range(processes)
    ]
    for n in (7, 0, 3, 40):
        assert np.concatenate([part[n].examples["x"] for part in parts]).tolist() == whole[n].examples["x"].tolist()
        assert np.concatenate([part[n].weight for part in parts]).tolist() == whole[n].weight.tolist()


def test_idle_rows_have_weight_0():
    batches = Batches(windows(), 8, 0, True)
    weights = np.stack([batches[n].weight for n in range(5)])
    assert weights.sum() == len(windows()) == 24 and "40.0% of the rows are idle" in windows().batch_text(8)
    assert [batch.weight.tolist() for batch in batches.block(0, 5)] == weights.tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 16])
def test_an_evaluation_reads_each_window_once(batch_size):
    batches = OrderedBatches(windows(), batch_size)
    addresses, starts = [], {}
    for n in range(len(batches)):
        batch = batches[n]
        for row in np.flatnonzero(batch.weight):
            addresses.append(batches.address(n * batch_size + row))
            drive = int(batch.examples["drive"][row, 0])
            assert starts.setdefault(drive, row) == row  # a drive stays in its row
    assert sorted(addresses) == list(range(24))


def test_transform_is_the_same_for_all_windows_of_a_drive_in_an_epoch():
    for found in (
        windows(transform=turn),
        windows(transform=f"{__name__}.turn"),
        Turned(frames(), length=4, carry=True),
    ):
        batches = Batches(found, 4, seed=0, shuffle=True)
        drawn = {}
        for n in range(12):
            examples = batches[n].examples
            for row in range(4):
                key = n // 6, int(examples["drive"][row, 0])
                assert drawn.setdefault(key, examples["x"][row, 0]) == examples["x"][row, 0]
        assert len(set(drawn.values())) == len(drawn) == 20


def test_transform_without_carry_belongs_to_the_position():
    batches = Batches(windows(carry=False, transform=turn), 4, seed=0, shuffle=True)
    assert len({x for n in range(6) for x in batches[n].examples["x"][:, 0]}) == 24
    assert OrderedBatches(windows(transform=turn), 4)[0].examples["x"].tolist() != batches[0].examples["x"].tolist()


def test_transform_may_declare_the_context():
    def late(window, rng, context):
        return {**window, "x": np.full_like(window["x"], context.step)}

    assert (Batches(windows(transform=late), 4, 0, True)[3].examples["x"] == 3).all()


def test_limit_takes_the_first_windows():
    part = windows(transform=turn).limited(5)
    assert len(part) == 5 and part.windows.sizes.tolist() == [3, 1, 1]
    batches = OrderedBatches(part, 2)
    assert sum(batches[n].weight.sum() for n in range(len(batches))) == 5
    assert len({part[i]["drive"][0] for i in range(5)}) == 3
    assert Batches(part, 2, 0, True)[0].examples["sequence"]["valid"].all()
    assert part.fingerprint() != windows().fingerprint()


def test_rows_for_which_a_limit_leaves_no_drive_are_idle():
    part = windows().limited(2)
    assert part.windows.sizes.tolist() == [2] and "50.0% of the rows are idle" in part.batch_text(2)
    batches = Batches(part, 2, 0, True)
    weights = np.stack([batches[n].weight for n in range(2)])
    assert weights.sum() == 2 and (weights.max(1) == 1).all()
    with pytest.raises(DataError, match=r"11 rows, but .*ArraySource has 10 drives"):
        Batches(part, 11, 0, True)


def test_fingerprint_changes_with_the_windows():
    kinds = [
        windows(),
        windows(5),
        windows(carry=False),
        windows(carry=False, stride=2),
        windows(max_gap=0.05, length=1),
    ]
    assert len({found.fingerprint() for found in kinds}) == 5
    assert all(found.fingerprint().startswith(frames().fingerprint() + "; ") for found in kinds)


def test_windows_without_carry_mix_and_weigh_like_other_examples():
    mixture = engine.Mixture({"a": windows(carry=False), "b": windows(carry=False, transform=turn)}, {"a": 1, "b": 1})
    assert Batches(mixture, 4, 0, True)[0].examples["x"].shape == (4, 4)
    weighted = engine.Weighted(windows(carry=False), tags=first_drive, balance="class")
    assert Batches(weighted, 4, 0, True)[0].examples["x"].shape == (4, 4)


def first_drive(window):
    return int(window["drive"][0])


def test_ragged_frames_are_padded_first():
    class Sweeps(Counted):
        def __getitem__(self, index):
            return {**self.inner[index], "points": np.ones((index % 5, 2), np.float32)}

    found = engine.Sequences(engine.Padded(Sweeps(), 5, "points"), length=4, carry=True)
    assert found[0]["points"].shape == (4, 5, 2) and found[0]["mask"].sum() == 0 + 1 + 2 + 3
    with pytest.raises(DataError, match=r"Bucketed has its own order, which windows do not follow"):
        engine.Sequences(engine.Bucketed(Sweeps(), [2, 5], "points"))


def test_frames_in_no_window_are_told(capfd):
    def read():
        return capfd.readouterr().err

    windows(carry=False)
    assert (
        "Sequences: 15 of 79 frames of engine.data.source.ArraySource are in no window of 4." in capfd.readouterr().err
    )
    windows()
    assert not read()


class Numbered(engine.Sequences):
    def __getitem__(self, index):
        return {**super().__getitem__(index), "number": np.int32(index)}


class Random(Counted):
    def transform(self, example, rng):
        return example


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: windows(0), r"length = 0: allowed is a whole number from 1"),
        (lambda: windows(carry=False, stride=-1), r"stride = -1: allowed is a whole number from 1"),
        (lambda: windows(max_gap=0), r"max_gap = 0: allowed is a number above 0"),
        (lambda: windows(max_gap="2 s"), r"max_gap = '2 s': allowed is a number above 0"),
        (lambda: windows(stride=2), r"stride = 2 with carry=True and length = 4: the windows of a drive must follow"),
        (lambda: windows(transform=3), r"transform = 3: allowed is a function of \(window, rng\), or its path"),
        (lambda: Turned(frames(), transform=turn), r"the class defines `transform`, and another one is passed"),
        (lambda: Numbered(frames(), carry=True), r"Numbered overrides __getitem__, but rows that continue drives are"),
        (lambda: engine.Sequences(Random()), r"Random has a random transform, which would differ from frame to frame"),
        (lambda: engine.Sequences(Tuples(), [0, 0], [0, 1], 2)[0], r"an example of .*Tuples is a tuple\. A frame is"),
        (lambda: engine.Sequences(frames(sequence=np.zeros(79)), carry=True)[0], r"have an entry 'sequence', which"),
        (lambda: engine.Mixture({"a": windows()}, {"a": 1}).sampler(0, True), r"carry=True cannot be a part of a mix"),
        (lambda: engine.Balanced(windows(), 2), r"Sequences continues drives in the rows of the batches, which must"),
        (
            lambda: engine.Weighted(windows(), tags=first_drive, balance="class").sampler(0, True),
            r"has its own sampler",
        ),
        (lambda: Batches(windows(), 11, 0, True), r"11 rows, but .*ArraySource has 10 drives, so that 1 rows would"),
        (lambda: windows().stored_order(2), r"predictions are in stored order, in which the rows of a batch of 2 do"),
        (lambda: engine.Sequences(ITERATOR), r"allowed is a source: .*It can only be iterated"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(make, text):
    with pytest.raises(DataError, match=text):
        make()


class Tuples(Counted):
    def __getitem__(self, index):
        return (self.inner[index]["x"],)

    def __len__(self):
        return 2


def test_a_check_of_the_dataset_reads_each_window():
    report = engine.check_dataset(windows(transform=turn), processes=1)
    assert report.examples == 24 and not report.bad
