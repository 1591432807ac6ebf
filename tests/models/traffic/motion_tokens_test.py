"""Motion tokens: the vocabulary, the causal model and its caches, and roll-outs with their errors."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convoy_zoo.models.traffic import token_scenes
from convoy_zoo.models.traffic.motion_tokens import SCENE, NextToken, constant_velocity, failures
from convoy_zoo.models.traffic.movements import k_means, move, movement, tokenise, wrap
from convoy_zoo.models.traffic.scenes import CURRENT, MAP_RADIUS, STEPS, VERSION, extract
from convoy_zoo.models.traffic.token_scenes import TokenScenes, vocabulary
from engine import DataError
from engine.training.model import describe
from tests.merging import results
from tests.models.traffic.recording import recording

AGENTS, PIECES, TOKENS, ROWS = 8, 12, 16, 2
FILE = f"tokens-v{VERSION}-{TOKENS}.npy"


class Scenes:
    """Scenes of a recording made by hand."""

    def __init__(self, split="train", folder="", count=20):
        self.count, self.recording = count, recording(agents=40, seed=(3,))

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return extract(self.recording, np.random.default_rng(index))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_scenes, "scenes", Scenes)
        path = tmp_path_factory.mktemp("traffic")
        vocabulary(str(path), TOKENS)
        yield path


@pytest.fixture(scope="module")
def batch(folder) -> dict[str, Any]:
    source = TokenScenes(agents=AGENTS, pieces=PIECES)
    found = jax.tree.map(lambda *rows: np.stack(rows), *(source[index] for index in range(ROWS)))
    shake = np.random.default_rng(0).normal(size=found["points"].shape)  # no two pieces are equally far from an agent
    return {**found, "points": found["points"] + shake.astype(np.float32)}


@pytest.fixture(scope="module")
def task(folder):
    return NextToken(tokens=TOKENS, folder=str(folder), width=16, heads=2, depth=2, nearest=4, samples=3, top=8)


@pytest.fixture(scope="module")
def model(task):
    return task.build(nnx.Rngs(0))


@pytest.fixture(scope="module")
def activations(model):
    """The compiled model without caches."""
    graph, params = nnx.split(model)
    return jax.jit(lambda scene, *inputs: nnx.merge(graph, params)(scene, *inputs)[0])


@pytest.fixture(scope="module")
def evaluate(task, model):
    """The compiled futures, and metrics, for keys."""
    graph, params = nnx.split(model)

    @jax.jit
    def run(batch, keys):
        module, context = nnx.merge(graph, params), type("Context", (), {"rng": keys})
        futures, same = task.roll_out(module, batch, keys), dataclasses.replace(task)
        vars(same).update(roll_out=lambda *_: futures)  # half of the time to compile
        return futures, same.evaluate(module, batch, context)

    return run


def test_vocabulary_is_made_once_and_contains_standing_still(folder):
    path = folder / FILE
    before = path.stat().st_mtime_ns
    tokens = vocabulary(str(folder), TOKENS)
    assert path.stat().st_mtime_ns == before
    assert tokens.shape == (TOKENS, 3) and not tokens[0].any()
    assert len(np.unique(tokens, axis=0)) == TOKENS
    assert [found.name for found in folder.iterdir()] == [path.name]


def test_the_first_build_makes_the_vocabulary_while_the_engine_traces_it(task, folder, tmp_path):
    model = describe(dataclasses.replace(task, folder=str(tmp_path)))
    np.testing.assert_array_equal(np.load(tmp_path / FILE), vocabulary(str(folder), TOKENS))
    assert model.model_state["movements"].shape == (TOKENS, 3) and "movements" not in model.params


@pytest.mark.slow
def test_a_trained_model_keeps_its_tokens_when_the_file_is_made_again(task, folder, tmp_path, batch):
    def run(values=None):
        new = dataclasses.replace(task, folder=str(tmp_path), depth=1)  # as in a new process, which reads the file
        described = describe(new)
        params, state = values or described.init(new, 0)
        loss = jax.jit(lambda params, state, batch: new.loss(described.module(params, state, None), batch, None).total)
        return (params, state), np.array(loss(params, state, batch))

    words = vocabulary(str(folder), TOKENS)
    np.save(tmp_path / FILE, words)
    saved, wanted = run()
    np.save(tmp_path / FILE, 1.5 * words)
    np.testing.assert_array_equal(run(saved)[1], wanted)
    assert (run((saved[0], {"movements": jnp.asarray(1.5 * words)}))[1] != wanted).any()


def test_vocabulary_that_cannot_be_written_is_an_error(folder):
    with pytest.raises(DataError, match=f"absent/{FILE}: cannot be written: No such file or directory"):
        vocabulary(str(folder / "absent"), TOKENS)


def test_a_source_of_every_zeroth_scene_is_an_error():
    with pytest.raises(DataError, match="every = 0: allowed is a whole number from 1 on"):
        TokenScenes(every=0)


def test_k_means_finds_the_centres_of_groups():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0, 0], [5, 0, 0], [3, 1, 0.5], [3, -1, -0.5]])
    movements = centres[rng.integers(4, size=2000)] + rng.normal(0, 0.03, (2000, 3))
    found = k_means(movements, 4)
    np.testing.assert_array_equal(found, k_means(movements, 4))
    distance = np.abs(found[:, None] - centres).max(-1)
    assert sorted(distance.argmin(-1)) == [0, 1, 2, 3] and distance.min(-1).max() < 0.05
    assert len(k_means(np.repeat(centres, 3, axis=0), 10)) == 4  # no more tokens than different movements


def test_moving_by_a_movement_reaches_the_pose():
    start, end = np.random.default_rng(0).uniform(-9, 9, (2, 50, 3)).astype(np.float32)
    found = np.array(move(start, movement(start, end)))
    np.testing.assert_allclose(found[:, :2], end[:, :2], atol=1e-5)
    np.testing.assert_allclose(wrap(found[:, 2] - end[:, 2]), 0, atol=1e-5)


def tracks(rows=40, steps=30):
    """Agents that drive along arcs with changing speed, some of which are valid in a part of the time."""
    rng = np.random.default_rng(1)
    speed = 4 + 3 * np.sin(rng.uniform(0, 6, (rows, 1)) + 0.2 * np.arange(steps))
    turn = rng.uniform(-0.15, 0.15, (rows, 1)) * np.ones(steps)
    heading = turn.cumsum(-1)
    position = (speed[..., None] * np.stack([np.cos(heading), np.sin(heading)], -1)).cumsum(-2)
    valid = (np.arange(steps) >= rng.integers(0, 5, (rows, 1))) & (np.arange(steps) < rng.integers(20, 31, (rows, 1)))
    pose = np.where(valid[..., None], np.concatenate([position, heading[..., None]], -1), 0)
    return pose[None].astype(np.float32), valid[None]


@pytest.mark.slow
def test_tokens_follow_tracks_without_drift():
    pose, valid = tracks()
    both = valid[:, :, 1:] & valid[:, :, :-1]
    words = k_means(np.asarray(movement(pose[:, :, :-1], pose[:, :, 1:]))[both], 150)
    tokens, reached, moved = map(np.array, tokenise(pose, valid, words))
    error = np.linalg.norm((reached - pose)[..., :2], axis=-1)
    late = valid & (np.arange(valid.shape[-1]) > 15)
    assert error[late].mean() < 0.3 and error[late].mean() < 2 * error[valid & ~late].mean()
    assert (moved[:, :, 1:][both] == tokens[both]).all() and (moved[:, :, 1:][~both] == len(words)).all()
    np.testing.assert_allclose(reached[:, :, 1:][both], move(reached[:, :, :-1], words[tokens])[both], atol=1e-4)
    np.testing.assert_array_equal(reached[:, :, 1:][~both], pose[:, :, 1:][~both])
    keys = jax.random.split(jax.random.key(0), 1)
    other, shaken, led = map(np.array, tokenise(pose, valid, words, (keys, 0.2)))
    assert (led[:, :, 1:] != other)[both].mean() > 0.3  # the agent is led away from the track,
    away = np.linalg.norm((shaken - pose)[..., :2], axis=-1)[late].mean()
    assert 1.2 * error[late].mean() < away < 1  # and its next tokens lead back


def inputs(model, batch):
    _, pose, moved = jax.jit(lambda one: tokenise(one["pose"], one["valid"], model.movements[...]))(batch)
    return {name: batch[name] for name in (*SCENE, "valid")}, pose, moved, model.motion(moved)


@pytest.mark.slow
def test_steps_with_caches_equal_the_whole_sequence(model, batch, activations):
    scene, *tokens = inputs(model, batch)
    whole = activations(scene, *tokens)
    graph, params = nnx.split(model)

    @jax.jit
    def steps(scene, tokens):
        def step(caches, t):
            one = (jax.lax.dynamic_slice_in_dim(x, t, 1, 2) for x in tokens)
            x, caches = nnx.merge(graph, params)(scene, *one, t, caches)
            return caches, x[:, :, 0]

        caches = nnx.merge(graph, params).empty_caches(ROWS * AGENTS, STEPS)
        return jnp.moveaxis(jax.lax.scan(step, caches, jnp.arange(STEPS))[1], 0, 2)

    valid = batch["valid"]
    np.testing.assert_allclose(steps(scene, tokens)[valid], whole[valid], atol=1e-4)


def test_a_step_depends_on_the_past_of_all_agents(model, batch, activations):
    scene, pose, *moved = inputs(model, batch)
    assert batch["valid"][0, :3].all()
    before = np.array(activations(scene, pose, *moved))
    after = np.array(activations(scene, pose.at[0, 1, 9:, :2].add(1.0), *moved))
    np.testing.assert_array_equal(after[:, :, :9], before[:, :, :9])
    np.testing.assert_array_equal(after[1], before[1])
    assert (np.abs(after - before)[0, [0, 2], 9:].max((0, 2)) > 1e-5).all()
    order = np.random.default_rng(0).permutation(AGENTS)
    agents = {name: scene[name][:, order] for name in ("size", "type", "valid")}
    mixed = activations({**scene, **agents}, pose[:, order], *(x[:, order] for x in moved))
    np.testing.assert_allclose(mixed, before[:, order], atol=1e-4)


def test_a_turned_scene_has_the_same_activations(model, batch, activations):
    scene, pose, *moved = inputs(model, batch)
    valid, angle, shift = batch["valid"], 2.0, np.array([30, -20], np.float32)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], np.float32)
    turned = jnp.concatenate([pose[..., :2] @ turn + shift, pose[..., 2:] + angle], -1)
    found = activations({**scene, "points": scene["points"] @ turn + shift}, turned, *moved)
    np.testing.assert_allclose(found[valid], activations(scene, pose, *moved)[valid], atol=2e-3)


@pytest.mark.slow
def test_roll_outs_are_sampled_tokens_and_depend_on_the_key_of_their_scene_only(task, model, batch, evaluate):
    keys = jax.random.split(jax.random.key(0), ROWS)
    futures = np.array(evaluate(batch, keys)[0])
    assert futures.shape == (ROWS, task.samples, AGENTS, STEPS - CURRENT - 1, 3)
    np.testing.assert_array_equal(evaluate(batch, keys)[0], futures)
    other = np.array(evaluate(batch, keys.at[1].set(jax.random.key(7)))[0])
    np.testing.assert_array_equal(other[0], futures[0])
    assert (other[1] != futures[1]).any() and (futures[:, 0] != futures[:, 1]).any()
    start = np.broadcast_to(batch["pose"][:, None, :, CURRENT, None], futures[:, :, :, :1].shape)
    moves = movement(jnp.concatenate([start, futures[:, :, :, :-1]], 3), futures)
    gap = np.abs(np.asarray(moves)[..., None, :] - model.movements[...]).max(-1).min(-1)
    assert gap[np.broadcast_to(batch["valid"][:, None, :, CURRENT, None], gap.shape)].max() < 1e-3


def test_roll_outs_in_half_precision_have_poses_in_full_precision(task, model, batch):
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    keys = jax.random.split(jax.random.key(0), ROWS)
    found = jax.eval_shape(lambda rows, keys: task.roll_out(nnx.merge(graph, half, rest), rows, keys), batch, keys)
    assert found.dtype == jnp.float32 and found.shape[:3] == (ROWS, task.samples, AGENTS)


def test_errors_and_rates_are_those_of_counted_vehicles(batch, evaluate):
    _, found = evaluate(batch, jax.random.split(jax.random.key(0), ROWS))
    valid, future = batch["valid"][:, :, CURRENT + 1 :], batch["pose"][:, :, CURRENT + 1 :]
    vehicles = batch["valid"][:, :, CURRENT] & batch["valid"][:, :, CURRENT - 1] & (batch["type"] < 4)
    counted = valid & vehicles[..., None]
    straight = np.array(constant_velocity(batch["pose"]))
    error = np.linalg.norm((straight - future)[..., :2], axis=-1)
    ades = [error[n][counted[n]].mean() for n in np.ndindex(*vehicles.shape) if counted[n].any()]
    assert results(found["constant_velocity"])["m/min_ade"] == pytest.approx(np.mean(ades), rel=1e-4)
    assert results(found["recording"])["m/min_ade"] == 0
    for name, poses in (("constant_velocity", straight), ("recording", future)):
        hit, left = failures(jax.tree.map(jnp.asarray, batch), jnp.asarray(poses)[:, None])
        for rate, failed in (("collision_rate", hit), ("off_road_rate", left)):
            wanted = (np.array(failed)[:, 0] & counted).any(-1)[counted.any(-1)].mean()
            assert results(found[f"{name}/{rate}"])["m"] == pytest.approx(wanted)
    assert np.isfinite(results(found["loss"])["m"])


def test_an_agent_that_has_just_appeared_collides_with_none():
    """Its velocity is unknown: constant velocity would send it from the origin through the scene."""
    steps = np.arange(STEPS, dtype=np.float32)
    pose = np.zeros((1, 2, STEPS, 3), np.float32)
    pose[0, 0, :, 0] = 10.0 + 10.0 * (steps - CURRENT) / (STEPS - 1 - CURRENT)  # drives from x = 10 m to x = 20 m
    pose[0, 1, CURRENT:, 0] = 5.0  # stands
    batch = {
        "valid": jnp.asarray(np.stack([steps >= 0, steps >= CURRENT])[None]),
        "size": jnp.full((1, 2, 2), 2.0),
        "points": jnp.zeros((1, 1, 2, 2)),
        "width": jnp.full((1, 1), 3.0),
        "road": jnp.ones((1, 1), bool),
        "reach": jnp.full(1, 100.0),
    }
    futures = jnp.asarray(constant_velocity(jnp.asarray(pose)))[:, None]
    assert not np.array(failures(batch, futures)[0]).any()
    seen = {**batch, "valid": jnp.ones((1, 2, STEPS), bool)}
    assert np.array(failures(seen, futures)[0]).any()


def test_an_agent_beyond_the_map_is_not_off_the_road():
    poses = np.zeros((1, 1, 1, STEPS - 1 - CURRENT, 3), np.float32)
    poses[..., 0] = 20.0 + 4.0 * np.arange(STEPS - 1 - CURRENT)  # leaves the lane at x = 30 m, and the map at x = 50 m
    batch = {
        "valid": jnp.ones((1, 1, STEPS), bool),
        "size": jnp.ones((1, 1, 2)),
        "points": jnp.asarray([[[[0.0, 0.0], [30.0, 0.0]]]]),
        "width": jnp.full((1, 1), 3.0),
        "road": jnp.ones((1, 1), bool),
        "reach": jnp.full(1, 50.0),
    }
    x = poses[0, 0, 0, :, 0]
    assert np.array_equal(np.array(failures(batch, jnp.asarray(poses))[1])[0, 0, 0], (x > 31.5) & (x < 50))


def test_lanes_are_complete_within_the_reach_of_a_scene(folder):
    every, few = (TokenScenes(agents=AGENTS, pieces=count)[0] for count in (1000, PIECES))
    assert every["reach"] == MAP_RADIUS - 7.5
    distance = np.hypot(*np.moveaxis(every["points"][every["mask"]], -1, 0)).min(-1)
    assert few["mask"].all() and few["reach"] + 7.5 == pytest.approx(np.sort(distance)[PIECES])


@pytest.mark.slow
def test_gradients_are_finite_and_reach_every_parameter(task, model, batch):
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    keys = jax.random.split(jax.random.key(0), ROWS)

    @functools.partial(jax.jit)
    @jax.grad
    def gradient(params):
        return task.loss(nnx.merge(graph, params, rest), batch, keys).total.sum()

    for path, leaf in jax.tree.leaves_with_path(gradient(params)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path
