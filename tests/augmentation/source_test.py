import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import engine
from engine import ArraySource, Balanced, Bucketed, Mixture, Packed, Padded, Weighted
from engine.augmentation import Flip, Rotate, Scale
from engine.base.errors import ConfigError, DataError
from engine.data.batches import Batches, OrderedBatches
from engine.data.context import Context, names_total_steps
from engine.data.sampling.sampler import Sampler
from tests import runs
from tests.augmentation.scenes import assert_same, rows

SCENE = {"points": "points", "boxes": {"center": "center"}}
STEPS = [Rotate(180), Scale(0.5, 2.0), Flip()]


def augment(source, steps=STEPS, scene=SCENE):
    return engine.augmented(source, steps, scene)


def batch(source, size=6, n=3, seed=1):
    return Batches(source, size, seed, True)[n].examples


class Ragged:
    """Sweeps of 2 to 6 points with their centre."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        points = np.random.default_rng(index).normal(size=(2 + index % 5, 3)).astype(np.float32)
        return {"points": points, "center": points.mean(0, keepdims=True), "index": np.int32(index)}


def stream():
    yield from (Ragged()[index] | {"points": np.ones((3, 3), np.float32)} for index in range(12))


class Noisy(ArraySource):
    def transform(self, example, rng, context):
        assert isinstance(context, Context)
        return {**example, "noise": rng.random(3), "points": example["points"] + 1}


def noisy():
    return Noisy(rows().arrays)


SOURCES = {
    "array": rows,
    "weighted": lambda: Weighted(rows(), np.arange(24) + 1.0),
    "mixture": lambda: Mixture({"a": rows(8), "b": rows(16)}, {"a": 1, "b": 2}),
    "padded": lambda: Padded(Ragged(), 8, "points"),
    "bucketed": lambda: Bucketed(Ragged(), [4, 8], "points"),
    "balanced": lambda: Balanced(Padded(Ragged(), 8, "points"), 2),
    "stream": lambda: stream,
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_each_kind_of_source_is_augmented_and_read_in_the_same_order(make):
    source = augment(make())
    plain = batch(source.source)
    found = batch(source)
    assert found.keys() == plain.keys() and found["points"].shape == plain["points"].shape
    # Rotations, scalings and flips about the origin change each length by the factor of the scene.
    lengths, old = (np.linalg.norm(x["points"], axis=-1) for x in (found, plain))
    factors = np.where(old > 0, lengths, 1) / np.where(old > 0, old, 1)
    first = factors[:, :1]
    np.testing.assert_allclose(factors[old > 0], np.broadcast_to(first, factors.shape)[old > 0], rtol=1e-5)
    assert len(np.unique(first.round(4))) == 6 and (first >= 0.5).all() and (first <= 2).all()
    centers, old = (np.linalg.norm(x["center"][:, 0], axis=-1) for x in (found, plain))
    np.testing.assert_allclose(centers, old * first[:, 0], rtol=1e-4)
    for name in set(plain) - {"points", "center"}:
        np.testing.assert_array_equal(found[name]["x"] if isinstance(found[name], dict) else found[name], plain[name])
    assert_same(batch(pickle.loads(pickle.dumps(source)), seed=1) if make is not SOURCES["stream"] else found, found)
    assert source.fingerprint() == source.source.fingerprint() and len(source) == len(source.source)


@pytest.mark.parametrize("name", ["array", "mixture", "bucketed"])
def test_evaluations_are_not_augmented(name):
    source = augment(SOURCES[name]())
    for n in range(2):
        assert_same(OrderedBatches(source, 4)[n].examples, OrderedBatches(source.source, 4)[n].examples)


def test_sources_within_other_sources_are_augmented():
    mixed = Mixture({"a": augment(rows(8)), "b": rows(16)}, {"a": 1, "b": 2})
    plain = Mixture({"a": rows(8), "b": rows(16)}, {"a": 1, "b": 2})
    both = (np.abs(batch(mixed)["points"] - batch(plain)["points"]).max((1, 2)) > 0).tolist()
    assert sum(both) == 2  # a third of the batch
    weights = np.arange(24) + 1.0
    assert_same(batch(Weighted(augment(rows()), weights)), batch(augment(Weighted(rows(), weights))))


def test_removing_one_augmentation_does_not_change_the_draws_of_the_others():
    both, alone = batch(augment(rows(), [Scale(0.5, 2.0), Rotate(90)])), batch(augment(rows(), [Rotate(90)]))
    for one, two in zip(both["points"], alone["points"], strict=True):
        factor = np.linalg.norm(one[0]) / np.linalg.norm(two[0])
        np.testing.assert_allclose(one, two * factor, rtol=1e-4, atol=1e-5)


def test_transform_of_the_source_runs_first_with_the_same_draws():
    found, plain = batch(augment(noisy())), batch(noisy())
    np.testing.assert_array_equal(found["noise"], plain["noise"])
    expected = batch(augment(rows()))  # the draws of the augmentations do not depend on the transform
    scales = [np.linalg.norm(x["center"], axis=-1) for x in (found, expected)]
    np.testing.assert_array_equal(*scales)
    mixture = Mixture({"a": noisy(), "b": noisy()}, {"a": 1, "b": 1})
    np.testing.assert_array_equal(batch(augment(mixture))["noise"], batch(mixture)["noise"])


def test_transform_that_reads_the_length_of_the_run_is_noticed():
    class Timed(ArraySource):
        def transform(self, example, rng, context):
            return {**example, "points": example["points"] + context.step / context.total_steps}

    timed = augment(Timed(rows().arrays))
    assert names_total_steps(timed.transform) and not names_total_steps(augment(noisy()).transform)
    context = Context(step=1, epoch=0, total_steps=2, rng=None)
    found = timed.transform(rows()[0], np.random.default_rng(0), context)
    expected = augment(rows()).transform({**rows()[0], "points": rows()[0]["points"] + 0.5}, np.random.default_rng(0))
    assert_same(found, expected)


def test_members_of_sources_and_samplers_are_taken_over():
    class Rows(Sampler):
        def addresses(self, positions):
            return positions

        def locate(self, address):
            return source, address

    class Ordered(ArraySource):
        def sampler(self, seed, shuffle):
            return Rows()

    source = Ordered(rows().arrays)
    Rows.tag_names, Rows.is_sized = ("one",), True
    found = augment(source).sampler(0, True)
    assert (found.tag_names, found.is_sized, found.has_transform) == (("one",), True, True)
    assert found.locate(3)[0].has_transform and found.locate(3)[0] is found.locate(4)[0]


def test_rows_of_several_sources_are_refused():
    class Bundles(ArraySource):
        def sampler(self, seed, shuffle):
            return Bundle()

    class Bundle(Sampler):
        def addresses(self, positions):
            return positions

    with pytest.raises(DataError, match=r"a row of .*Bundles is no example of one source. Augment each of its sources"):
        batch(augment(Bundles(rows().arrays)))


def test_probability_leaves_some_examples_as_they_are():
    source = augment(rows(), [Rotate(180, probability=0.5)])
    changed = np.abs(batch(source, 24)["points"] - batch(source.source, 24)["points"]).max((1, 2)) > 0
    assert 4 < changed.sum() < 20


def test_rows_of_a_process_have_the_draws_of_their_position():
    source = augment(rows())
    whole = Batches(source, 6, 1, True)[2].examples
    part = Batches(source, 6, 1, True, rows=np.array([1, 4]))[2].examples
    np.testing.assert_array_equal(part["points"], whole["points"][[1, 4]])


def test_limited_and_weighted_members_are_those_of_the_source():
    source = augment(Mixture({"a": rows(8), "b": rows(16)}, {"a": 1, "b": 2}))
    assert len(source.limited(6)) == 6 and source.limited(6).has_transform
    assert batch(source.with_run(100)).keys() == {"points", "center"}
    padded = augment(SOURCES["bucketed"]())
    assert padded.shape_names() == ["4", "8"] and padded.lengths().tolist() == [2 + n % 5 for n in range(12)]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: augment(rows(), []), "steps is empty"),
        (
            lambda: augment(rows(), [Rotate(), Rotate(3)]),
            "two steps are named Rotate, .*name='second'",
        ),
        (lambda: augment(rows(), [Rotate]), r"steps\[0\] is a type, allowed is an augmentation"),
        (lambda: augment(rows(), [{"degrees": 3}]), r"steps\[0\] is a dict"),
        (lambda: augment(rows(), scene=None), "Rotate: there is no description"),
        (
            lambda: augment(rows(), scene={"points": "point"}),
            "no entry 'point'.*Did you mean points",
        ),
        (
            lambda: augment(Packed(Ragged(), {"points": 8}, fields={"points": "points"})),
            "a row of .*Packed holds several",
        ),
        (lambda: augment({"points": 3}), "engine.augmented: source: found a dict"),
    ],
)
def test_mistakes_are_one_sentence_at_the_start(make, text):
    with pytest.raises(DataError, match=text):
        make()


def test_error_of_a_later_example_names_it():
    class Odd(Ragged):
        def __getitem__(self, index):
            return {"points": np.ones(3, int) if index == 7 else np.ones((4, 3))}

    with pytest.raises(DataError, match=r"transform failed at example 7 .*augmentation Rotate: points is int64\[3\]"):
        batch(augment(Odd(), scene={"points": "points"}), 12)


DATA: dict[str, Any] = dict(
    target="engine.augmented",
    source=dict(target="tests.augmentation.scenes.rows"),
    steps=[
        dict(target="engine.augmentation.Rotate", degrees=180),
        dict(target="engine.augmentation.Scale", low=0.9, high=1.1),
        dict(target="engine.augmentation.Flip"),
    ],
    scene=SCENE,
)
CONFIG: dict[str, Any] = dict(
    task=dict(target="tests.augmentation.scenes.Center"),
    data=DATA,
    evaluations={},
    optimizer__schedule="constant",
    train__global_batch_size=8,
)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    path = tmp_path_factory.mktemp("unbroken")
    engine.train(runs.config(**CONFIG, train__total="8 steps"), workdir=path)
    return runs.rows(path)


def test_resumed_run_has_the_same_losses_in_worker_processes_as_in_threads(unbroken, tmp_path):
    engine.train(runs.config(**CONFIG, train__total="3 steps"), workdir=tmp_path)
    engine.train(runs.config(**CONFIG, train__total="8 steps", data__workers=1), workdir=tmp_path)
    assert runs.rows(tmp_path) == unbroken
    assert len(set(unbroken.values())) == 8


def test_config_names_an_unknown_setting(tmp_path):
    data = {**DATA, "steps": [dict(target="engine.augmentation.Rotate", degree=3)]}
    with pytest.raises(ConfigError, match=r"data.steps.0.degree: .* takes no such argument.*Did you mean degrees"):
        engine.train(runs.config(**{**CONFIG, "data": data}), workdir=tmp_path)


def test_import_of_the_package_loads_no_jax():
    program = "import sys, engine.augmentation, engine.augmentation.source; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
