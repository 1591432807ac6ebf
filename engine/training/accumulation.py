"""Refuses gradient accumulation for models whose result depends on the number of microbatches.

Losses and gradients are sums over examples, so microbatches give the result of the whole batch. State that the forward
pass changes, such as batch statistics, random numbers that one call draws for all of its rows, and losses that compare
rows are no such sums.
"""

from collections.abc import Callable, Collection

from engine.base.errors import ConfigError
from engine.training.model import Model

FLAG = "train.approximate_accumulation=True"


def check_dropout(model: Model, accumulate: int) -> None:
    """Raises ConfigError if the model has an active nnx.Dropout."""
    if model.shared_dropout:
        raise ConfigError(
            f"train.accumulate = {accumulate}: {', '.join(model.shared_dropout)} is nnx.Dropout, which "
            "draws one mask for a whole microbatch, so its masks depend on the number of microbatches. "
            f"Use engine.layers.Dropout, which draws one mask per example, or accumulate=1, or {FLAG}."
        )


def refuse_mixed(task: str, mixed: str, accumulate: object) -> ConfigError:
    """Returns the error of a loss that mixes rows.

    Args:
        task: name of the Task.
        mixed: which result mixes rows, and where.
        accumulate: `train.accumulate`.
    """
    return ConfigError(
        f"train.accumulate = {accumulate}: in {task}.loss, {mixed}. So the result depends on the number of "
        "microbatches. Use accumulate=1, or define encode(self, model, batch, rng) and loss_of(self, encoded, batch, "
        f"mask) instead of loss, which are exact with any number of them. {FLAG} accepts the difference."
    )


def check_row_state(model: Model, accumulate: int, rows: int, changed_by: Callable[[int], Collection[str]]) -> None:
    """Raises ConfigError if the forward pass keeps state of each row of the global batch.

    Args:
        model: the model.
        accumulate: number of microbatches, of which a pass with fewer rows has failed.
        rows: rows of the global batch.
        changed_by: returns the paths of the variables that a pass with a number of rows changes.
    """
    paths = model.state_of_rows(rows)
    if not paths:
        return
    try:
        changed = changed_by(rows)
    except Exception:  # it fails with any number of rows, and the caller raises the first error
        return
    if state := [f"{path} {list(model.model_state[path].shape)}" for path in paths if path in changed]:
        raise ConfigError(
            f"train.accumulate = {accumulate}: the forward pass carries {', '.join(state)} from batch to batch, for "
            f"each of the {rows} rows, but a microbatch has {rows // accumulate}. Use accumulate=1, and for less "
            "memory a smaller train.global_batch_size, more devices or train.remat."
        )


def check_changed(model: Model, changed: Collection[str], accumulate: int) -> None:
    """Raises ConfigError if the forward pass changes a variable.

    Args:
        model: the model.
        changed: paths of the variables that the forward pass changes.
        accumulate: number of microbatches.
    """
    state = sorted(path for path in changed if path in model.model_state)
    if state:
        raise ConfigError(
            f"train.accumulate = {accumulate}: the forward pass changes {', '.join(state)} in each microbatch, so the "
            "result differs from that of the whole batch. Use accumulate=1, or a layer without such state (GroupNorm "
            f"or LayerNorm for BatchNorm), or change the state in Task.after_step. {FLAG} accepts the difference."
        )
    if changed:
        raise ConfigError(
            f"train.accumulate = {accumulate}: the forward pass draws from nnx.Rngs ({', '.join(sorted(changed))}), "
            "once per microbatch, so its random numbers depend on the number of microbatches. Draw them from the keys "
            f"per example that loss receives, or use accumulate=1. {FLAG} accepts the difference."
        )
