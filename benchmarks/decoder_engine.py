"""The decoder of `decoder.py` in the engine's own loop: a worker."""

import dataclasses
import sys
import time
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks import interleaved
from benchmarks.decoder_inputs import LEARNING_RATE, WEIGHT_DECAY, read
from benchmarks.worker import serve
from convoy_zoo.models.decoder import LanguageModel
from engine import ArraySource
from engine.api.prepared import set_up_devices
from engine.cli.huge_pages import restart_with_huge_pages
from engine.config import defaults, validate


@dataclasses.dataclass
class DecoderFromFile(LanguageModel):
    """The language model with first weights from a file."""

    inputs: str = ""

    def build(self, rngs):
        model: Any = super().build(rngs)
        _, inputs = read(self.inputs)
        layer = model.stack.layers
        attention, feed = layer.attention, layer.feed_forward
        for name, variable in (
            ("embed", model.embed.table), ("head", model.head.kernel), ("query", attention.query.kernel),
            ("key", attention.key.kernel), ("value", attention.value.kernel), ("out", attention.out.kernel),
            ("gate", feed.gate.kernel), ("up", feed.up.kernel), ("down", feed.down.kernel),
        ):  # fmt: skip
            variable.set_value(jnp.asarray(inputs[name]))
        return model


def packed_rows(inputs: str) -> ArraySource:
    """Returns the tokens as packed rows of one document each."""
    sizes, arrays = read(inputs)
    tokens = arrays["tokens"]
    shape = (len(tokens), sizes.time)
    return ArraySource(
        {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "segment_ids": np.ones(shape, np.int32),
            "positions": np.broadcast_to(np.arange(sizes.time, dtype=np.int32), shape),
            "weight": np.ones(shape, np.float32),
        }
    )


def main() -> None:
    """Trains a turn at a time."""
    inputs, steps, turns = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sizes, _ = read(inputs)
    c = defaults()
    model = dict(
        vocabulary=sizes.vocabulary, width=sizes.width, hidden=sizes.hidden, depth=sizes.depth, heads=sizes.heads
    )
    c.task = dict(target="benchmarks.decoder_engine.DecoderFromFile", inputs=inputs, **model)
    c.data = dict(target="benchmarks.decoder_engine.packed_rows", inputs=inputs, shuffle=False)
    c.train.total = f"{interleaved.total_steps(steps, turns)} steps"
    c.train.global_batch_size = sizes.batch
    c.mesh.cpu_devices = "auto"
    c.optimizer = dict(learning_rate=LEARNING_RATE, schedule="constant", clip_norm=None, weight_decay=WEIGHT_DECAY)
    c.checkpoint.every = None
    c.log.every = "1 step"
    c.log.tensorboard = False
    config = set_up_devices(validate(c))
    with interleaved.EngineLoop(config, steps) as engine:
        done = 0

        def turn(steps: int) -> list[float]:
            nonlocal done
            if done:  # the turn that compiles ran on entry
                engine.turn()
            done += steps
            losses: dict[int, float] = {}
            while done not in losses:  # a row arrives from the writer's thread a moment after its step
                time.sleep(0.001)
                losses = {row["step"]: row["loss"] for row in list(engine.rows) if "loss" in row}
            return [losses[step] for step in range(done - steps + 1, done + 1)]

        serve(turn)


if __name__ == "__main__":
    restart_with_huge_pages()  # as the command line does
    main()
