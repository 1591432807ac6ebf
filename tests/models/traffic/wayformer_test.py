"""Forecasts in traffic: frames of the examples, groups of agents, padding, loss and errors in numpy, and figures."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from convoy_zoo.configs import forecast_sim
from convoy_zoo.models.traffic.scenes import VERSION, extract
from convoy_zoo.models.traffic.targets import CURRENT, FUTURE, GROUPS, Targets, in_group, of_type, target
from convoy_zoo.models.traffic.wayformer import TrafficForecast, constant_velocity
from engine import DataError, write_dataset
from tests.merging import results
from tests.models.traffic.recording import recording

TASK = TrafficForecast(modes=3, width=16, heads=2, latents=4, encoder=1, decoder=1)
GRAPH, PARAMS = nnx.split(TASK.build(nnx.Rngs(0)))


@pytest.fixture(scope="module")
def examples():
    whole = recording(agents=30)
    found = [extract(whole, np.random.default_rng(seed)) for seed in range(40)]
    return [target(scene, track) for scene in found for track in np.flatnonzero(scene["track_to_predict"]).tolist()]


def test_test_is_tagged_by_agent_and_scene(tmp_path):
    scenes = [{"scene_id": f"test-0-{n}", **extract(recording(agents=30), np.random.default_rng(n))} for n in range(2)]
    write_dataset(scenes, tmp_path / f"test-v{VERSION}.arrayrecord", processes=1)
    source, tags = Targets("test", str(tmp_path)), forecast_sim.get_config().evaluations.test.tags
    names = [(example[tags.scene], example[tags.key]) for example in map(source.__getitem__, range(len(source)))]
    assert {scene for scene, _ in names} == {"test-0-0", "test-0-1"}
    assert len(set(names)) == len(names) > 2 and all(key.startswith(f"{scene}-") for scene, key in names)


@pytest.fixture(scope="module")
def batch(examples):
    groups = np.array([example["group"] for example in examples])
    chosen = [examples[n] for group in range(len(GROUPS)) for n in np.flatnonzero(groups == group)[:4]]
    return jax.tree.map(lambda *rows: np.stack(rows), *chosen)


@jax.jit
def forecast(batch):
    return nnx.merge(GRAPH, PARAMS)(batch)


@jax.jit
def loss_and_metrics(batch) -> Any:
    model = nnx.merge(GRAPH, PARAMS)
    return TASK.loss(model, batch, None), TASK.evaluate(model, batch)


def test_examples_do_not_depend_on_the_frame_of_the_network():
    scene = extract(recording(agents=30), np.random.default_rng(1))
    angle, shift = 2.0, np.array([40, -7])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    moved = {**scene, "track_heading": scene["track_heading"] + angle}
    for name in ("track_position", "map_points", "signal_point"):
        moved[name] = scene[name] @ turn + shift
    for track in np.flatnonzero(scene["track_to_predict"]).tolist():
        one, other = target(scene, track), target(moved, track)
        for (path, x), y in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(y, x, atol=1e-3, err_msg=str(path))
        assert not one["agents"][0].reshape(-1)[6 * CURRENT : 6 * CURRENT + 2].any()  # its last position


def test_groups_name_what_an_agent_does():
    scene = extract(recording(agents=30), np.random.default_rng(1))
    scene = {name: x.copy() for name, x in scene.items()}
    time, wanted = np.arange(-CURRENT, FUTURE + 1) / 2, ("turning", "straight", "stopped", "standing")
    for group, speed, last, heading in zip(wanted, (5, 5, 0.2, 0), (30, 30, 8, 0.5), (1.2, 0.1, 0, 0), strict=True):
        scene["track_position"][0] = np.stack([last * time / time[-1], 0 * time], -1)
        scene["track_heading"][0] = np.where(time > 0, heading * time / time[-1], 0)
        scene["track_speed"][0] = speed
        example = target(scene, 0)
        assert [name for name, member in in_group(example).items() if member] == [group]
        np.testing.assert_allclose(example["future"][-1], [last, 0], atol=1e-4)
        assert sum(of_type(example).values()) == 1


@pytest.mark.parametrize("standing", [0, 1.5])
def test_a_share_of_standing_agents_outside_its_range_is_an_error(standing):
    with pytest.raises(DataError, match=f"standing = {standing}: allowed is a share above 0, up to 1"):
        Targets(standing=standing)


def test_padding_does_not_change_forecasts(batch):
    found = forecast(batch)
    noise = {
        name: np.where(batch["mask"][name][..., None], batch[name], 1e3).astype(np.float32) for name in batch["mask"]
    }
    assert any((noise[name] != batch[name]).any() for name in noise)
    for one, two in zip(found, forecast({**batch, **noise}), strict=True):
        np.testing.assert_allclose(two, one, atol=1e-5)


def test_forecasts_depend_on_agents_lanes_and_lights(batch):
    found = np.asarray(forecast(batch)[0])
    for name in ("agents", "pieces", "signals"):
        other = np.asarray(forecast({**batch, name: batch[name] + batch["mask"][name][..., None]})[0])
        assert np.abs(other - found).max() > 1e-3, name


def test_loss_and_errors_equal_plain_numpy(batch):
    predicted, log_scale, logits = (np.asarray(x, np.float64) for x in forecast(batch))
    error = np.sqrt(((predicted - batch["future"][:, None]) ** 2).sum(-1) + 1e-6)
    best, rows = error.mean(-1).argmin(-1), np.arange(len(error))
    scale = log_scale[rows, best].clip(-1, 3)
    likelihood = (error[rows, best] / np.exp(scale) + 2 * scale).mean()
    chosen = (np.log(np.exp(logits).sum(-1)) - logits[rows, best]).mean()
    loss, metrics = loss_and_metrics(batch)
    found = {name: float(term.total.sum() / term.weight.sum()) for name, term in loss.terms.items()}
    assert found == pytest.approx({"best": likelihood, "score": TASK.score * chosen}, rel=1e-4)
    errors = {name: results(x) for name, x in metrics.items()}
    moving, top = batch["group"] != GROUPS.index("standing"), error[rows, logits.argmax(-1)]
    assert 0 < moving.sum() < len(moving)
    assert errors["best"]["m/min_ade"] == pytest.approx(error.mean(-1).min(-1)[moving].mean(), rel=1e-3)
    assert errors["top"]["m/min_fde"] == pytest.approx(top[moving, -1].mean(), rel=1e-3)
    assert errors["top"]["m/miss_rate"] == pytest.approx((top[moving, -1] > 2).mean())


def test_constant_velocity_is_right_where_an_agent_keeps_its_velocity(examples):
    keeps = [x for x in examples if x["group"] == GROUPS.index("straight") and np.abs(x["future"][:, 1]).max() < 0.1]
    assert len(keeps) > 5
    for example in keeps:
        one = jax.tree.map(lambda x: x[None], example)
        np.testing.assert_allclose(constant_velocity(one)[0, 0], example["future"], atol=0.05)


def test_only_the_nearest_mode_learns(batch):
    one = jax.tree.map(lambda x: x[:1], batch)
    predicted, *others = (x[:1] for x in forecast(batch))
    best = int(np.linalg.norm(predicted - one["future"][:, None], axis=-1).mean(-1).argmin())

    def loss(modes):
        loss: Any = TASK.loss(lambda _: (modes, *others), one, None)
        return loss.terms["best"].total.sum()

    gradient = np.abs(jax.jit(jax.grad(loss))(predicted)).sum((0, 2, 3))  # [modes]
    assert gradient[best] > 0 and (np.delete(gradient, best) == 0).all()


def test_figure_says_that_the_traffic_is_simulated(batch):
    pytest.importorskip("matplotlib")
    row = {**jax.tree.map(lambda x: x[0], batch), "id": "test-0-1-2"}
    prediction = {"future": np.asarray(forecast(batch)[0])[0], "probability": np.array([0.5, 0.3, 0.2])}
    (axes,) = TASK.figure(row, prediction).axes
    assert axes.get_title() == "Simulated traffic (SUMO), test-0-1-2"
    assert len(axes.lines) > row["mask"]["pieces"].sum() + TASK.modes
