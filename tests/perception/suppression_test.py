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
VALID = RNG.random((BATCH, BOXES)) < 0.9


def greedy(scores, covers, labels, valid):
    """Returns what the loop of the rule keeps; the first of equal scores wins."""
    kept = []
    for i in sorted(np.flatnonzero(valid), key=lambda i: (-scores[i], i)):
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


@pytest.mark.parametrize(("boxes", "iou"), [(FLAT, box_iou), (TURNED, rotated_iou)], ids=["flat", "turned"])
def test_nms_equals_the_loop(boxes, iou):
    covers = np.asarray(jax.jit(iou)(boxes[:, :, None], boxes[:, None])) > 0.2
    count = COUNT if boxes is FLAT else 30
    run = jax.jit(
        lambda boxes, scores, labels, valid: nms(boxes, scores, count, threshold=0.2, labels=labels, valid=valid)
    )
    assert_kept(run(boxes, SCORES, LABELS, VALID), covers, count=count)


def test_circle_nms_equals_the_loop_and_its_limit_suppresses():
    square = ((LOW[:, :, None].astype(np.float32) - LOW[:, None].astype(np.float32)) ** 2).sum(-1)
    run = jax.jit(
        lambda boxes, scores, labels, valid: circle_nms(boxes, scores, COUNT, radius=1.5, labels=labels, valid=valid)
    )
    assert_kept(run(jnp.float32(LOW), SCORES, LABELS, VALID), square <= 1.5**2)
    line, scores = jnp.array([[[0.0, 0], [2, 0], [4.5, 0]]] * 2), jnp.array([[0.9, 0.8, 0.7]] * 2)
    radius = jnp.array([[2, 2, 2], [0, 1.9, 4.5]])
    found = jax.jit(lambda centres, scores, radius: circle_nms(centres, scores, 3, radius=radius))(line, scores, radius)
    assert found.indices.tolist() == [[0, 2, 0], [0, 1, 0]] and found.valid.sum() == 4


def test_long_chain_of_boxes_that_cover_each_other_keeps_every_second_one():
    steps = jnp.arange(33.0)
    run = jax.jit(lambda centres, scores: circle_nms(centres, scores, 33, radius=1.0))
    found = run(jnp.stack([steps, 0 * steps], -1)[None], 1 - steps[None] / 40)
    assert found.indices[0, :17].tolist() == list(range(0, 33, 2)) and found.valid.sum() == 17


def test_boxes_whose_score_is_nan_are_left_out():
    scores = jnp.array([[jnp.nan, 0.5, 0.4]])
    boxes = jnp.array([[[0.0, 0, 1, 1], [0, 0, 1, 1], [3, 3, 4, 4]]])
    both = jax.jit(lambda boxes, scores: (nms(boxes, scores, 3, threshold=0.5), soft_nms(boxes, scores, 3)))
    for found in both(boxes, scores):
        assert found.indices[0, :2].tolist() == [1, 2] and found.valid[0].tolist() == [True, True, False]


@pytest.mark.parametrize(("boxes", "iou"), [(FLAT, box_iou), (TURNED, rotated_iou)], ids=["flat", "turned"])
def test_soft_nms_equals_the_loop(boxes, iou):
    least = 0.05
    found = jax.jit(
        lambda boxes, scores, labels, valid: soft_nms(
            boxes, scores, COUNT, sigma=0.3, least=least, labels=labels, valid=valid
        )
    )(boxes, SCORES, LABELS, VALID)
    overlaps = np.asarray(jax.jit(iou)(boxes[:, :, None], boxes[:, None]), np.float64)
    for row in range(BATCH):
        scores, rest, wanted = SCORES[row].astype(np.float64), list(np.flatnonzero(VALID[row])), []
        rest = [i for i in rest if scores[i] > least]
        while rest:
            best = max(rest, key=lambda i: (round(scores[i], 6), -i))
            wanted.append((best, scores[best]))
            for i in rest:
                if LABELS[row, i] == LABELS[row, best]:
                    scores[i] *= np.exp(-(overlaps[row, best, i] ** 2) / 0.3)
            rest = [i for i in rest if i != best and scores[i] > least]
            if len(wanted) == COUNT:
                break
        assert found.indices[row].tolist() == [i for i, _ in wanted]
        np.testing.assert_allclose(found.scores[row], [score for _, score in wanted], rtol=1e-5)
        assert found.overflow[row] == len(rest)


def test_scores_are_differentiable():
    boxes = jnp.asarray(FLAT)

    def total(scores):
        return soft_nms(boxes, scores, COUNT).scores.sum() + nms(boxes, scores, COUNT, threshold=0.3).scores.sum()

    gradient = jax.jit(jax.grad(total))(SCORES)
    assert jnp.isfinite(gradient).all() and (gradient != 0).sum() >= COUNT * BATCH


def test_boxes_of_another_kind_are_an_error():
    with pytest.raises(TaskError, match=r"nms: found boxes of shape \(3, 40, 2\)"):
        nms(jnp.float32(LOW), jnp.asarray(SCORES), COUNT, threshold=0.5)
