"""The batches of a training run: a batch that is read once more, and the files that list examples."""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from engine import ArraySource
from engine.config.schema import MeshSpec
from engine.data.feed import Batching
from engine.loop.inputs import TrainInputs
from engine.parallel.mesh import make_mesh
from engine.run.directory import RunDirectory
from tests import runs, zoo


class Scheduled(ArraySource):
    """Examples that depend on the number of steps of the run."""

    def transform(self, example, rng, context):
        return {**example, "x": example["x"] * context.total_steps + rng.random()}


def inputs(directory, source, **settings):
    sharding = NamedSharding(make_mesh(MeshSpec()), PartitionSpec("data"))
    config = runs.config(**settings)
    batching = Batching(config.train.global_batch_size, config.train.seed, sharding, total_steps=10)
    return TrainInputs(source, config.data, batching, 1, directory, print, config.log.examples)


def test_batch_that_is_read_once_more_is_the_same(tmp_path):
    with RunDirectory.open(tmp_path) as directory, inputs(directory, Scheduled(zoo.examples(64))) as opened:
        with opened.open(3, {}) as feed:
            (batch,) = feed.next(1)
        jax.tree.map(np.testing.assert_array_equal, opened.read_again(3).examples, batch.examples)


def test_examples_are_listed_once_also_if_a_batch_is_read_once_more(tmp_path):
    with RunDirectory.open(tmp_path) as directory:
        with inputs(directory, zoo.source(), log__examples=True) as opened:
            with opened.open(0, {}) as feed:
                feed.next(2)
            opened.read_again(1)
        [file] = directory.examples.glob("*.jsonl")
        assert len(file.read_text().splitlines()) == 2
