"""Forecasts: symmetries of the model, its loss and errors in plain numpy, and wrong command lines."""

import shutil
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import forecasting
from convoy_zoo.models.pedestrians.eth_ucy import PLACES
from convoy_zoo.models.pedestrians.forecasting import Forecast
from tests.merging import results
from tests.models.pedestrians import recordings

TASK = Forecast(modes=5, width=16, heads=2, temporal=1)
GRAPH, PARAMS = nnx.split(TASK.build(nnx.Rngs(0)))
ROWS, AGENTS = 2, 9


@jax.jit
def forecast(history, segment_ids):
    return nnx.merge(GRAPH, PARAMS)(history, segment_ids)


def batch(seed=0) -> dict[str, np.ndarray]:
    """Rows with two scenes of four and three agents, and two places of padding."""
    rng = np.random.default_rng(seed)
    tracks = rng.uniform(-3, 3, (ROWS, AGENTS, 1, 2)) + rng.normal(0, 0.4, (ROWS, AGENTS, 20, 2)).cumsum(axis=2)
    ids = np.tile(np.array([1, 1, 1, 1, 2, 2, 2, 0, 0]), (ROWS, 1))
    tracks = np.where((ids > 0)[..., None, None], tracks, 0).astype(np.float32)
    return {"history": tracks[:, :, :8], "future": tracks[:, :, 8:], "segment_ids": ids, "mask": ids > 0}


def test_forecasts_move_and_turn_with_the_scene():
    history, ids = batch()["history"], batch()["segment_ids"]
    turn = np.array([[np.cos(2), np.sin(2)], [-np.sin(2), np.cos(2)]], np.float32)
    found, scores = forecast(history, ids)
    turned, turned_scores = forecast(history @ turn + np.array([5, -3], np.float32), ids)
    mask = batch()["mask"]
    np.testing.assert_allclose(turned[mask], (found @ turn + np.array([5, -3]))[mask], atol=1e-4)
    np.testing.assert_allclose(turned_scores[mask], scores[mask], atol=1e-4)
    np.testing.assert_array_less(0.1, np.abs(found[:, :, 0] - found[:, :, 1]).max())  # modes differ


def test_agents_see_those_of_their_scene_only_in_any_order():
    history, ids = batch()["history"], batch()["segment_ids"]
    found, scores = forecast(history, ids)
    changed = history.copy()
    changed[:, 4] += 0.5  # in the second scene
    moved, _ = forecast(changed, ids)
    np.testing.assert_array_equal(moved[:, :4], found[:, :4])
    assert np.abs(moved[:, 5:7] - found[:, 5:7]).max() > 1e-3
    order = np.array([2, 0, 3, 1, 6, 4, 5, 7, 8])
    permuted, permuted_scores = forecast(history[:, order], ids)
    np.testing.assert_allclose(permuted, found[:, order], atol=1e-5)
    np.testing.assert_allclose(permuted_scores, scores[:, order], atol=1e-5)


@pytest.mark.slow
def test_agent_that_stands_still_has_finite_forecasts_and_gradients():
    still = {**batch(), "history": np.zeros((ROWS, AGENTS, 8, 2), np.float32)}

    def total(params):
        loss: Any = TASK.loss(nnx.merge(GRAPH, params), still, None, context(5))
        return sum(term.total.sum() for term in loss.terms.values())

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(PARAMS)))


def loss_and_metrics(params, one) -> Any:
    """At the last step of a run."""
    model = nnx.merge(GRAPH, params)
    return TASK.loss(model, one, None, context(10)), TASK.evaluate(model, one)


def context(step) -> Any:
    return types.SimpleNamespace(step=jnp.int32(step), total_steps=10)


def errors(predicted, future):
    """The mean and the last displacement of each mode, `[modes]`."""
    distance = np.sqrt(((predicted - future) ** 2).sum(-1))
    return distance.mean(-1), distance[:, -1]


def test_loss_and_errors_equal_plain_numpy():
    one = batch(3)
    predicted, scores = jax.device_get(forecast(one["history"], one["segment_ids"]))
    best, chosen, top = [], [], []
    for row, agent in np.argwhere(one["mask"]):
        ade, fde = errors(predicted[row, agent], one["future"][row, agent])
        logits = scores[row, agent].astype(np.float64)
        first = logits.argmax()
        best.append((ade.min(), fde.min(), fde.min() > 2))
        top.append((ade[first], fde[first], fde[first] > 2))
        chosen.append(np.log(np.exp(logits).sum()) - logits[ade.argmin()])
    loss, metrics = jax.jit(loss_and_metrics)(PARAMS, one)
    found = {name: float(term.total.sum() / term.weight.sum()) for name, term in loss.terms.items()}
    expected = {"best": np.mean(best, axis=0)[:2].sum(), "score": TASK.score * np.mean(chosen)}
    assert found == pytest.approx(expected, rel=1e-4)
    names = ("m/min_ade", "m/min_fde", "m/miss_rate")
    for name, values in (("best", best), ("top", top)):
        metric = results(metrics[name])
        assert metric == pytest.approx(dict(zip(names, np.mean(values, axis=0), strict=True)), rel=1e-4)


def test_figure_draws_the_agents_and_modes_of_the_first_scene():
    pytest.importorskip("matplotlib")
    one = batch()
    predicted, scores = forecast(one["history"], one["segment_ids"])
    columns = {"future": np.asarray(predicted), "probability": np.asarray(jax.nn.softmax(scores))}
    [ax] = TASK.figure(*({name: array[0] for name, array in rows.items()} for rows in (one, columns))).axes
    assert len(ax.lines) == 4 + 1 + 4 + 4 * TASK.modes  # past, last positions, future, and predictions of four agents
    assert max(line.get_alpha() or 0 for line in ax.lines) == 1


@pytest.mark.slow
def test_every_mode_learns_at_the_start_and_the_best_one_at_the_end():
    one = jax.tree.map(lambda x: x[:1, :1], batch())

    @jax.jit
    @jax.grad
    def gradient(params, step):
        loss: Any = TASK.loss(nnx.merge(GRAPH, params), one, None, context(step))
        return loss.terms["best"].total.sum()

    start, end = (np.abs(gradient(PARAMS, step)["modes"].get_value()).sum(axis=1) for step in (0, 9))  # [modes]
    assert (start > 1e-6).all()
    assert 1 <= (end > 1e-6 * end.max()).sum() <= 2  # the best means and the best last steps


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--places=eth,zara3", "--places: 'zara3' is unknown. Allowed: eth, hotel, univ, zara1, zara2."),
        ("--places=", "--places: '' is unknown."),
        ("--seeds=0,one", "--seeds: '0,one' is no list of numbers from 0 on, such as 1,2."),
        ("--seeds=-1", "--seeds: '-1' is no list of numbers from 0 on"),
        ("--modes=20,0", "--modes: '20,0' is no list of numbers from 1 on"),
        ("--folder=nowhere", "biwi_eth.txt: not found. Copy the folders"),
        ("train.totl=3", "train.totl: unknown field (train.totl=3). Did you mean train.total?"),
    ],
)
def test_mistake_of_the_command_line_is_a_sentence_before_any_training(argument, message, tmp_path, capsys):
    folder = recordings.write(tmp_path / "data", walkers=1, frames=20)
    with pytest.raises(SystemExit) as stopped:
        forecasting.main([f"--folder={folder}", f"--workdir={tmp_path}/runs", argument])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_missing_validation_split_is_reported_before_any_training(tmp_path, capsys):
    folder = recordings.write(tmp_path / "data", walkers=1, frames=20)
    shutil.rmtree(folder / "val")
    with pytest.raises(SystemExit) as stopped:
        forecasting.main([f"--folder={folder}", f"--workdir={tmp_path}/runs", "--places=eth"])
    assert stopped.value.code == 2
    assert "_val.txt: not found. Copy the folders" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_table_has_published_rows_and_means_of_places_and_seeds():
    rows = {"model": {place: [(0.1 * n, 0.2), (0.1 * n, 0.4)] for n, place in enumerate(PLACES)}}
    lines = [[cell for cell in line.split("  ") if cell] for line in forecasting.table(PLACES, rows).splitlines()]
    found = {cells[0]: [cell.strip() for cell in cells[1:]] for cells in lines}
    assert found["AgentFormer, corrected, K = 20"][-1] == "0.232/0.392"
    assert found["Trajectron++, corrected, K = 20"][-1] == "0.316/0.546"
    assert found["model"] == [f"{0.1 * n:.3f}/0.300" for n in range(5)] + ["0.200/0.300", "0.200/0.200 0.200/0.400"]


def test_constant_velocity_has_no_error_for_a_straight_walk():
    class Straight:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            track = np.arange(20.0)[:, None] * np.ones((3 + index, 1, 2))
            return {"history": track[:, :8], "future": track[:, 8:] + [0, 3 * index]}

    found: Any = forecasting.constant_velocity(Straight())  # pyright: ignore[reportArgumentType]
    assert found == pytest.approx((12 / 7, 12 / 7))  # four of seven agents are 3 m off
