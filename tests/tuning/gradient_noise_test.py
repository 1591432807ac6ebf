"""The norms of gradients, measured with the program of a run: equal to exact ones, on any mesh."""

import dataclasses

import numpy as np
import pytest

import engine
from engine import Loss, Mean, Task
from engine.api.objects import Objects
from engine.api.prepared import prepare
from engine.api.saved_run import SavedRun
from engine.base.errors import ConfigError
from engine.config.schema import Group
from engine.data.feed import Batching, TrainFeed
from engine.tuning.gradient_noise import batch_numbers, check_defined, find_warnings, measure, open_run
from engine.tuning.noise import noise_scale
from tests import contrasting, row_state, zoo
from tests.tuning import problems

SETTINGS = {"train__total": "1 steps", "train__global_batch_size": 16}


def train(folder, *, weighted=False, **settings):
    """Trains one step of the regression; returns the measured run and the parameters of the step."""
    config = problems.config("Regression", "observations", **{**SETTINGS, "data__weighted": weighted, **settings})
    engine.train(config, workdir=folder)
    opened = open_run(SavedRun(folder), Objects())
    program, _ = opened.at_step(1)
    [point] = opened.saved.restore(1, program).params.values()
    return opened, np.asarray(point, np.float64)


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    return train(tmp_path_factory.mktemp("regression") / "run")


def exact(point, weighted=False):
    """Returns |G|^2, tr(Sigma) and the noise scale of all examples, of the gradient of their weighted mean."""
    gradients, weights = problems.example_gradients(point, weighted)
    true = weights @ gradients / weights.sum()
    spread = weights @ ((gradients - true) ** 2).sum(1) / weights.sum()
    share = weights.mean()  # a batch of B rows has the weight share * B
    return true @ true, spread / share, spread / share / (true @ true)


@pytest.mark.parametrize("weighted", [False, True])
def test_estimates_agree_with_the_exact_gradients_of_all_examples(regression, tmp_path, weighted):
    opened, point = train(tmp_path / "run", weighted=True) if weighted else regression
    found = noise_scale(1, measure(opened, 1, 256))
    squared, trace, scale = exact(point, weighted)
    assert found.squared_interval[0] < squared < found.squared_interval[1]
    assert found.trace == pytest.approx(trace, rel=0.1)
    assert found.noise_scale is not None and found.interval[0] < scale < found.interval[1]
    assert found.noise_scale == pytest.approx(scale, rel=0.15)


def test_norms_are_those_of_the_gradients_of_the_batches(regression):
    opened, point = regression
    found = measure(opened, 1, 4)
    gradients, _ = problems.example_gradients(point)
    config = opened.prepared.config
    batching = Batching(16, config.train.seed, opened.program.spec.batch_sharding, 1)
    numbers = [number for part in batch_numbers(opened.prepared, batching, 1, 4) for number in part]
    rows = [rows_of(opened, batching, number) for number in numbers]
    means = np.array([gradients[index].mean(0) for index in rows])
    np.testing.assert_allclose(found.squared, (means**2).sum(1), rtol=1e-5)
    np.testing.assert_allclose(found.dots, means @ (16 * means).sum(0), rtol=1e-5)
    assert found.weights.tolist() == [16] * 4


def rows_of(opened, batching, number):
    """Returns the indices of the examples of a batch, which are found by their targets."""
    feed = TrainFeed(opened.prepared.source, opened.prepared.config.data, batching, range(number, number + 1))
    batch = feed.next(1)[0]
    feed.close()
    targets = problems.examples()["y"]
    return [int(np.flatnonzero(targets == y)[0]) for y in np.asarray(batch.examples["y"])]


@pytest.mark.parametrize(
    "settings",
    [
        {"mesh": {"data": 1, "fsdp": 2, "tensor": 4}},
        {"mesh": {"data": 2, "fsdp": 4}, "sharding__zero1": True},
        {"train__accumulate": 2},
    ],
    ids=["fsdp", "zero1", "microbatches"],
)
def test_other_meshes_and_microbatches_give_the_same_norms(regression, tmp_path, settings):
    expected = measure(regression[0], 1, 4)
    opened, _ = train(tmp_path / "run", **settings)
    found = measure(opened, 1, 4)
    for name in ("squared", "dots", "weights"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=2e-5)


def test_batches_of_little_data_come_from_different_epochs(regression):
    opened, _ = regression
    batching = Batching(16, 0, opened.program.spec.batch_sharding, 1)
    numbers = [number for part in batch_numbers(opened.prepared, batching, 5, 8) for number in part]
    epochs = {number * 16 // 400 for number in numbers}
    assert len(epochs) == 8 and numbers[0] == 5
    assert batch_numbers(opened.prepared, batching, 5, 2) == [range(5, 7)]  # 8 % of the data


@dataclasses.dataclass
class OwnUpdate(zoo.Classify):
    """A Task with an update of its own."""

    def update(self, state, batch, context):
        model = state.model()
        return state, dict(loss=Mean.of(model(batch["x"])[:, 0]))


class TwoLosses(Task):
    """A Task with a loss for each group."""

    def build(self, rngs):
        return zoo.Mlp(8, 0.0, rngs=rngs)

    def loss(self, model, batch, rng):
        logits = model(batch["x"])
        return {"body": Loss.of(logits[:, 0]), "head": Loss.of(logits[:, 1])}


def test_task_with_a_loss_for_each_group_is_refused():
    groups = {"body": Group(match="hidden"), "head": Group(match="head")}
    with pytest.raises(ConfigError, match=r"TwoLosses has a loss for each group \(body, head\)"):
        check_defined(zoo.program(TwoLosses(), groups=groups))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (contrasting.Contrast(), "the loss of Contrast compares the rows of a batch"),
        (OwnUpdate(), "OwnUpdate has an update of its own"),
        (row_state.Continue(), "Continue keeps state for each row"),
    ],
)
def test_tasks_without_a_mean_over_examples_are_refused(task, message):
    with pytest.raises(ConfigError, match=message):
        check_defined(zoo.program(task))


def test_what_makes_the_noise_scale_less_than_exact_is_said():
    config = problems.config("Bowl", "targets", **SETTINGS, data__shuffle=False)
    prepared = prepare(config, Objects(task=zoo.Classify("cnn"), data=zoo.source()))
    program, _ = prepared.build_program()
    mixed, order = find_warnings(prepared, program)
    assert "in the loss of Classify, 'loss' of a row depends on other rows of its batch" in mixed
    assert order.startswith("data.shuffle = False")


def test_batch_of_most_of_the_data_is_refused(regression):
    opened, _ = regression
    batching = Batching(256, 0, opened.program.spec.batch_sharding, 1)
    with pytest.raises(ConfigError, match="256 is more than half of the 400 examples"):
        batch_numbers(opened.prepared, batching, 0, 4)
