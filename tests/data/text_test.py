"""Text in examples passes through sources and stays on the host."""

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.config.schema import Data
from engine.data.batches import Batches, OrderedBatches
from engine.data.ragged.packing import Packed
from engine.data.sampling.mixture import Mixture
from engine.data.sampling.sampler import read_examples
from engine.data.source import ArraySource, BaseSource, example_spec, limited
from engine.data.text import has_text, is_text, text_columns, without_text
from engine.readers.array_record import ArrayRecordSource, write_array_record

NAMES = ["a", "bb", "ccc", "d", "ee"]


class Scenes(BaseSource):
    """Examples with text in dicts, tuples and arrays; bytes end with zero."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if not 0 <= index < 5:
            raise IndexError(index)
        words = np.array(NAMES[: index % 2 + 1])
        return {
            "x": np.full(3, index, np.float32),
            "id": NAMES[index],
            "meta": {"raw": b"\0%d\0" % index, "words": words},
            "pair": (np.int64(index), NAMES[index]),
        }


def arrays():
    return ArraySource({"x": np.arange(5.0), "id": np.array(NAMES), "tag": np.array(NAMES, object)})


@pytest.mark.parametrize(
    ("leaf", "found"),
    [
        ("a", True),
        (b"a", True),
        (np.str_("a"), True),
        (np.array(["a", "bb"]), True),
        (np.array([b"a"]), True),
        (np.array(["a", b"b"], object), True),
        (np.array(["a", None], object), False),
        (np.array([], object), False),
        (np.array([1.0]), False),
        (1, False),
    ],
)
def test_text_is_strings_and_bytes_and_arrays_of_them(leaf, found):
    assert is_text(leaf) is found


def test_batches_of_training_and_evaluation_hold_no_text():
    for source in (Scenes(), arrays()):
        for batches in (Batches(source, 4, 0, shuffle=True), OrderedBatches(source, 4)):
            assert not has_text(batches[0].examples)
            assert "id" not in batches[0].examples and "x" in batches[0].examples
    assert "id" not in example_spec(Scenes()) and example_spec(Scenes())["pair"][1] is None
    blocks = Batches(arrays(), 2, 0, shuffle=False).block(0, 2)
    assert [sorted(block.examples) for block in blocks] == [["x"], ["x"]]


def test_transform_sees_the_text():
    class Tagged(ArraySource):
        def transform(self, example, rng):
            return {"x": np.float32(len(example["id"]))}

    batch = Batches(Tagged(arrays().arrays), 5, 0, shuffle=False)[0]
    assert batch.examples["x"].tolist() == [len(name) for name in NAMES]


def test_kept_text_has_the_value_of_each_row():
    batch = OrderedBatches(Scenes(), 4, keep_text=True)[1]
    assert batch.weight.tolist() == [1, 0, 0, 0]
    columns = text_columns(batch.examples)
    assert columns["id"] == columns["pair/1"] == ["ee"] * 4
    assert columns["meta/raw"][0] == b"\x004\0"
    assert columns["meta/words"][0].tolist() == ["a"]
    assert without_text(batch.examples).keys() == {"x", "meta", "pair"}
    assert text_columns(OrderedBatches(arrays(), 5, keep_text=True)[0].examples) == {"id": NAMES, "tag": NAMES}


def test_mixture_and_array_records_keep_text(tmp_path):
    parts = {"one": Scenes(), "two": Scenes()}
    mixture = Mixture(parts, {"one": 1, "two": 1})
    assert [mixture[i]["id"] for i in range(10)] == NAMES * 2
    assert text_columns(mixture.take(np.array([9, 0])))["id"] == ["ee", "a"]
    with pytest.raises(DataError, match=r"hold x float32\[3\], but those of source one .*id text"):
        Mixture(
            {"one": limited(Scenes(), 2), "two": ArraySource({"x": np.zeros((2, 3), np.float32)})}, {"one": 1, "two": 1}
        )
    file = tmp_path / "scenes.arrayrecord"
    write_array_record(Scenes(), str(file))
    stored = ArrayRecordSource(str(file))
    assert [stored[i]["id"] for i in range(5)] == NAMES
    assert stored[3]["meta"]["raw"] == b"\x003\0" and stored[3]["meta"]["words"].tolist() == ["a", "bb"]
    columns = text_columns(stored.take(np.array([4, 1])))
    assert columns["id"] == ["ee", "bb"] and columns["meta/raw"] == [b"\x004\0", b"\x001\0"]


@pytest.mark.parametrize("names", [["a", np.nan], [np.nan, "a"]], ids=["text first", "number first"])
def test_text_that_is_a_number_in_another_example_is_a_data_error(names):
    class Missing(Scenes):
        def __getitem__(self, index):
            return {"x": np.zeros(3), "id": names[index]}

    first, second = ("text", r"\[\]") if names[0] == "a" else (r"\[\]", "text")
    with pytest.raises(
        DataError, match=rf"Example 1 of .* has id {second}, x \[3\], example 0 of .* has id {first}, x"
    ):
        read_examples(Missing(), np.arange(2))


def test_packed_reads_documents_with_text():
    class Documents(ArraySource):
        pass

    rows = Packed(Documents({"tokens": np.arange(20).reshape(5, 4), "id": np.array(NAMES)}), 8)
    assert not has_text(rows[0])


def test_fingerprint_depends_on_the_text():
    other = {**arrays().arrays, "tag": np.array([*NAMES[:4], "E"], object)}
    assert arrays().fingerprint() == arrays().fingerprint()
    assert arrays().fingerprint() != ArraySource(other).fingerprint()
    assert Scenes().fingerprint() == Scenes().fingerprint()


@pytest.mark.slow
def test_text_passes_through_worker_processes():
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from engine.data.feed import EvaluationFeed

    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    feed = EvaluationFeed(Scenes(), Data(workers=1), batch_size=3, sharding=sharding, keep_text=True)
    found = [(text_columns(host.examples)["id"], placed.examples.keys()) for placed, host in feed.with_host_batches()]
    assert found == [(["a", "bb", "ccc"], {"x", "meta", "pair"}), (["d", "ee", "ee"], {"x", "meta", "pair"})]
