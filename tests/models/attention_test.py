"""Attention with a bias, as the driving workloads use it."""

import numpy as np

from convoy_zoo.models.attention import attend, only


def test_attention_equals_plain_numpy():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, tokens, 3, 4)).astype(np.float32) for tokens in (5, 6, 6))
    bias, seen = rng.normal(size=(2, 3, 5, 6)), rng.random((2, 1, 1, 6)) < 0.6
    seen[..., 0] = True
    found, weights = attend(q, k, v, bias + only(seen))
    for scene, head, query in np.ndindex(2, 3, 5):
        exp = np.exp(k[scene, :, head] @ q[scene, query, head] / 2 + bias[scene, head, query]) * seen[scene, 0, 0]
        np.testing.assert_allclose(weights[scene, head, query], exp / exp.sum(), atol=1e-6)
        np.testing.assert_allclose(found[scene, query, head], exp / exp.sum() @ v[scene, :, head], atol=1e-5)
