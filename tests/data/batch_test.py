"""`Batch`: a pytree of examples and their weight."""

import pickle

import jax
import numpy as np

from engine.data.batch import Batch


def test_batch_is_a_pytree_of_examples_and_weight():
    batch = Batch({"x": np.arange(3)}, np.ones(3, np.float32))
    doubled = jax.tree.map(lambda x: 2 * x, batch)
    assert isinstance(doubled, Batch)
    assert doubled.examples["x"].tolist() == [0, 2, 4]
    assert doubled.weight.tolist() == [2, 2, 2]


def test_batch_can_be_pickled():
    batch = pickle.loads(pickle.dumps(Batch({"x": np.arange(3)}, np.ones(3, np.float32))))
    assert batch.examples["x"].tolist() == [0, 1, 2]
