"""A hand-written training loop with jax.jit and optax: what the engine is measured against.

It uses none of the engine's steps. Its batches come from the engine's feed, so that both loops read data in the same
way, and its first parameters are given, so that both compute the same losses and accuracies, both at every step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Arrays = dict[str, jax.Array]
Forward = Callable[[Arrays, Arrays, jax.Array], tuple[jax.Array, Arrays]]


def perceptron(params: Arrays, statistics: Arrays, image: jax.Array) -> tuple[jax.Array, Arrays]:
    """Returns logits `[batch, classes]` and no statistics."""
    x = image.reshape(len(image), -1)
    for i in range(len(params) // 2 - 1):
        x = jax.nn.relu(x @ params[f"hidden/{i}/kernel"] + params[f"hidden/{i}/bias"])
    return x @ params["head/kernel"] + params["head/bias"], statistics


def convolutions(params: Arrays, statistics: Arrays, image: jax.Array) -> tuple[jax.Array, Arrays]:
    """Returns logits `[batch, 10]` of models/fashion_mnist.py, and the new averages of its batch normalisations."""
    x, new = (image[..., None].astype(jnp.float32) / 255 - 0.286) / 0.353, {}
    for i in (1, 2):
        kernel = params[f"conv{i}/kernel"]
        x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        mean = x.mean((0, 1, 2))
        variance = jnp.maximum((x * x).mean((0, 1, 2)) - mean * mean, 0)
        for name, value in (("mean", mean), ("var", variance)):
            new[f"norm{i}/{name}"] = 0.99 * statistics[f"norm{i}/{name}"] + 0.01 * value
        scale = jax.lax.rsqrt(variance + 1e-5) * params[f"norm{i}/scale"]
        x = jax.nn.relu((x - mean) * scale + params[f"norm{i}/bias"])
    x = jax.nn.relu(x.reshape(len(x), -1) @ params["dense/kernel"] + params["dense/bias"])
    return x @ params["head/kernel"] + params["head/bias"], new


class BareLoop:
    """A hand-written training loop.

    Args:
        forward: `(params, statistics, image) -> (logits, statistics)`.
        params: first parameters.
        statistics: first averages of the batch normalisations; empty without them.
        feed: `feed.next(1)` returns a tuple of one batch, whose examples are `image` and `label`.
        learning_rate: the peak of a cosine over `total_steps`.
        total_steps: length of the schedule.
        log_every: steps between two of which loss and accuracy are kept.
    """

    def __init__(
        self,
        forward: Forward,
        params: Arrays,
        statistics: Arrays,
        feed: Any,
        *,
        learning_rate: float,
        total_steps: int,
        log_every: int = 50,
    ):
        self.feed = feed
        self.step = 0
        """Steps done so far."""
        self.logged: dict[int, list[float]] = {}
        """Loss and accuracy by step, of every `log_every`th step."""
        self._log_every = log_every
        adamw = optax.adamw(
            optax.cosine_decay_schedule(learning_rate, total_steps),
            mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree),
        )
        tx = optax.chain(optax.clip_by_global_norm(1.0), adamw)
        self.state = (params, statistics, tx.init(params))

        def loss(params: Arrays, statistics: Arrays, batch: Arrays) -> tuple[jax.Array, Any]:
            logits, statistics = forward(params, statistics, batch["image"])
            accuracy = (jnp.argmax(logits, axis=-1) == batch["label"]).mean()
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return losses.mean(), (statistics, accuracy)

        def update(state: Any, batch: Arrays) -> tuple[Any, jax.Array]:
            params, statistics, opt_state = state
            (value, (statistics, accuracy)), grads = jax.value_and_grad(loss, has_aux=True)(params, statistics, batch)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), statistics, opt_state), jnp.stack([value, accuracy])

        self.update = update
        self._jitted = jax.jit(update, donate_argnums=0)

    def train(self, steps: int) -> None:
        """Trains for so many steps and waits for the device."""
        kept, state = {}, self.state
        for step in range(self.step + 1, self.step + steps + 1):
            (batch,) = self.feed.next(1)
            state, metrics = self._jitted(state, batch.examples)
            if step % self._log_every == 0:
                kept[step] = metrics
        self.state = jax.block_until_ready(state)
        self.step += steps
        self.logged |= {step: metrics.tolist() for step, metrics in kept.items()}
