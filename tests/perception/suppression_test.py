import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import TaskError
from engine.perception import box_iou, circle_nms, nms, rotated_iou, soft_nms
from tests.perception.goldens import differing

RNG = np.random.default_rng(0)
BATCH, BOXES, COUNT = 3, 40, 8
LOW = RNG.uniform(0, 6, (BATCH, BOXES, 2))
FLAT = np.concatenate([LOW, LOW + RNG.uniform(0.5, 4, LOW.shape)], -1).astype(np.float32)
TURNED = np.concatenate([LOW, RNG.uniform(0.5, 4, LOW.shape), RNG.uniform(-3, 3, (BATCH, BOXES, 1))], -1)
TURNED = TURNED.astype(np.float32)
SCORES = RNG.integers(0, 25, (BATCH, BOXES)).astype(np.float32) / 25  # some are equal
LABELS = RNG.integers(0, 2, (BATCH, BOXES))
SCORES[0, 3] = SCORES[2, 5] = np.nan
VALID = RNG.random((BATCH, BOXES)) < 0.9


@functools.cache
def overlaps(kind):
    """Returns the overlaps of all pairs, from functions that have tests of their own."""
    boxes, iou = (FLAT, box_iou) if kind == "flat" else (TURNED, rotated_iou)
    return np.asarray(jax.jit(iou)(boxes[:, :, None], boxes[:, None]))


@jax.jit
def by_distance(centres, scores, labels, valid, radius):
    return circle_nms(centres, scores, BOXES, radius=radius, labels=labels, valid=valid)


def greedy(scores, covers, labels, valid):
    """Returns what the loop of the rule keeps; the first of equal scores wins."""
    kept = []
    for i in sorted(np.flatnonzero(valid & ~np.isnan(scores)), key=lambda i: (-scores[i], i)):
        if not any(covers[j, i] and labels[j] == labels[i] for j in kept):
            kept.append(i)
    return kept


def assert_kept(found, covers, scores=SCORES, labels=LABELS, valid=VALID, count=COUNT):
    for row in range(BATCH):
        wanted = greedy(scores[row], covers[row], labels[row], valid[row])
        indices, kept, present, overflow = (np.asarray(x[row]) for x in found)
        assert indices[present].tolist() == wanted[:count]
        assert present.sum() == min(len(wanted), count) and present[: present.sum()].all()
        assert kept.tolist() == [*scores[row][indices[present]], *[0] * (count - present.sum())]
        assert overflow == max(len(wanted) - count, 0)


def test_nms_equals_torchvision():
    assert differing("nms", 2) == []


@pytest.mark.parametrize(("kind", "count"), [("flat", COUNT), ("turned", 30)])
def test_nms_equals_the_loop(kind, count):
    run = jax.jit(
        lambda boxes, scores, labels, valid: nms(boxes, scores, count, threshold=0.2, labels=labels, valid=valid)
    )
    found = run(FLAT if kind == "flat" else TURNED, SCORES, LABELS, VALID)
    assert_kept(found, overlaps(kind) > 0.2, count=count)


def test_circle_nms_equals_the_loop_and_its_limit_suppresses():
    square = ((LOW[:, :, None].astype(np.float32) - LOW[:, None].astype(np.float32)) ** 2).sum(-1)
    found = by_distance(LOW.astype(np.float32), SCORES, LABELS, VALID, np.full((BATCH, BOXES), 1.5, np.float32))
    assert_kept(found, square <= 1.5**2, count=BOXES)
    line, radius = np.zeros((BATCH, BOXES, 2), np.float32), np.full((BATCH, BOXES), 2, np.float32)
    line[:, :3, 0], radius[1, :3] = (0, 2, 4.5), (0, 1.9, 4.5)
    first = np.broadcast_to(np.arange(BOXES) < 3, (BATCH, BOXES))
    scores = np.broadcast_to(1 - np.arange(BOXES, dtype=np.float32) / 50, (BATCH, BOXES))
    found = by_distance(line, scores, 0 * LABELS, first, radius)
    assert found.indices[:2, :3].tolist() == [[0, 2, 0], [0, 1, 0]] and found.valid.sum(1).tolist() == [2, 2, 2]


def test_radius_between_whole_numbers_counts_for_centres_in_cells():
    cells = jnp.zeros((BATCH, BOXES, 2), jnp.int32).at[:, 1].set(jnp.array([2, 1])).at[:, 2:].set(9)
    first = np.broadcast_to(np.arange(BOXES) < 3, (BATCH, BOXES))
    run = jax.jit(lambda cells, scores, valid: circle_nms(cells, scores, 3, radius=2.3, valid=valid))
    found = run(cells, SCORES, first)  # the distance is 2.24
    assert found.valid.sum(1).tolist() == [2, 2, 2]


def test_long_chain_of_boxes_that_cover_each_other_keeps_every_second_one():
    steps = np.broadcast_to(np.arange(BOXES, dtype=np.float32), (BATCH, BOXES))
    centres = np.stack([steps, 0 * steps], -1)
    found = by_distance(centres, 1 - steps / 50, 0 * LABELS, np.ones_like(VALID), np.ones_like(steps))
    assert found.indices[0, : BOXES // 2].tolist() == list(range(0, BOXES, 2)) and found.valid[0].sum() == BOXES // 2


@pytest.mark.parametrize("kind", ["flat", "turned"])
def test_soft_nms_equals_the_loop_and_its_scores_are_differentiable(kind):
    least, boxes = 0.05, jnp.asarray(FLAT if kind == "flat" else TURNED)
    labels, valid = jnp.asarray(LABELS), jnp.asarray(VALID)

    def total(scores, boxes):
        found = soft_nms(boxes, scores, COUNT, sigma=0.3, least=least, labels=labels, valid=valid)
        return found.scores.sum(), found

    of = (0, 1) if kind == "flat" else (0,)  # the gradient of the overlap of rotated boxes takes 10 s to compile
    (gradient, *of_boxes), found = jax.jit(jax.grad(total, of, has_aux=True))(SCORES, boxes)
    assert all(jnp.isfinite(x).all() and (x != 0).any() for x in of_boxes)
    assert jnp.isfinite(gradient).all() and (gradient != 0).sum() == found.valid.sum() == COUNT * BATCH
    for row in range(BATCH):
        scores, wanted = SCORES[row].astype(np.float64), []
        rest = [i for i in np.flatnonzero(VALID[row]) if scores[i] > least]
        while len(wanted) < COUNT:
            best = max(rest, key=lambda i: (round(scores[i], 6), -i))
            wanted.append((best, scores[best]))
            for i in rest:
                if LABELS[row, i] == LABELS[row, best]:
                    scores[i] *= np.exp(-(overlaps(kind)[row, best, i].astype(np.float64) ** 2) / 0.3)
            rest = [i for i in rest if i != best and scores[i] > least]
        assert found.indices[row].tolist() == [i for i, _ in wanted]
        np.testing.assert_allclose(found.scores[row], [score for _, score in wanted], rtol=1e-5)
        assert found.overflow[row] == len(rest)


def test_soft_nms_of_scores_in_half_precision_has_their_dtype():
    scores = jnp.asarray(SCORES[:1], jnp.bfloat16)
    found = jax.jit(lambda x: soft_nms(jnp.asarray(FLAT[:1]), x, 3))(scores)
    assert found.scores.dtype == jnp.bfloat16 and found.valid.all()


def test_without_boxes_nothing_is_kept():
    boxes, scores = jnp.zeros((2, 0, 4)), jnp.zeros((2, 0))
    for found in (nms(boxes, scores, 3, threshold=0.5), soft_nms(boxes, scores, 3)):
        assert not found.valid.any() and found.indices.shape == found.scores.shape == (2, 3)
        assert found.overflow.tolist() == [0, 0]


def test_threshold_of_1_keeps_equal_boxes():
    boxes = jnp.repeat(jnp.asarray(TURNED[:1]), 2, axis=1)
    found = nms(boxes, 1 - jnp.arange(2.0 * BOXES)[None] / 100, 2 * BOXES, threshold=1.0)
    assert found.valid.all()


def test_boxes_of_another_kind_are_an_error():
    with pytest.raises(TaskError, match=r"nms: found boxes of shape \(3, 40, 2\)"):
        nms(jnp.float32(LOW), jnp.asarray(SCORES), COUNT, threshold=0.5)
