"""The entropy of attention, in blocks and with segments, against that of the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.diagnosis import attention


def weights(q, k, allowed):
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    return jax.nn.softmax(jnp.where(allowed[:, None], scores, -jnp.inf))


@pytest.mark.parametrize("causal", [True, False])
def test_entropy_is_that_of_the_weights_of_all_queries_but_padding(causal, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 4)
    keys = jax.random.split(jax.random.key(0), 2)
    q, k = jax.random.normal(keys[0], (2, 12, 4, 8)), jax.random.normal(keys[1], (2, 12, 2, 8))
    segments = jnp.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12])
    allowed = segments[:, :, None] == segments[:, None]
    if causal:
        allowed &= jnp.tril(jnp.ones((12, 12), bool))
    p = weights(q, jnp.repeat(k, 2, 2), allowed)
    each = -jax.scipy.special.xlogy(p, p).sum(-1).mean(1)
    expected = float(each[segments > 0].mean())
    assert float(attention.entropy(q, k, causal=causal, segment_ids=segments)) == pytest.approx(expected, rel=1e-5)
    assert attention.BLOCK < 12, "there are several blocks"


def test_equal_scores_have_the_entropy_of_the_number_of_keys():
    zeros = jnp.zeros((1, 7, 1, 2))
    found = attention.entropy(zeros, zeros, causal=False, segment_ids=None)
    assert float(found) == pytest.approx(np.log(7), rel=1e-6)
