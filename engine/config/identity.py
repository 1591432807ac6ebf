"""What makes two configs the same run: the fields that decide what is computed. `resume.py` refuses their change.

Identity, because another value gives another training:
    task.*                          the model and the loss
    data.target and its arguments   the examples
    data.shuffle, data.limit        their order and their number
    optimizer.*                     every update
    train.global_batch_size         what a step is, and so where the run stands in its data
    train.seed                      weights, order, randomness
    train.precision                 the numbers that the model computes in
    train.ema_decay                 a part of the state

May change, because the run stays the same run:
    train.total                     how far; see `schedule_change`
    train.accumulate, steps_per_dispatch, remat, offload_optimizer     how a step is carried out: the same sum
    mesh.*, sharding.*              where it is carried out
    data.threads, workers, prefetch                        how fast examples come
    data.on_error, resilience.*     what happens when something goes wrong
    init.*                          what was begun with, which the first checkpoint holds
    checkpoint.*, evaluations.*, hooks.*, log.*, profile.*, cache.*, tiny.*, name      what is kept, measured and shown
"""

from engine.config.schema import Config
from engine.config.text import flatten, value_text

_SECTIONS = ("task.", "data.", "optimizer.")
_FREE = ("data.threads", "data.workers", "data.prefetch", "data.on_error")
_FIELDS = ("train.global_batch_size", "train.seed", "train.precision", "train.ema_decay")


def is_identity(name: str) -> bool:
    """Whether the field of this dotted name decides what a run computes."""
    return name in _FIELDS or (name.startswith(_SECTIONS) and name not in _FREE)


def identity_differences(old: Config, new: Config) -> list[str]:
    """Returns a line `train.seed: 0 -> 1` for each identity field that differs; `(none)` where one has no such field.

    Order counts only for groups, of which the first that matches a parameter treats it.
    """
    before, after = (
        {name: value_text(name, value) for name, value in flatten(config) if is_identity(name)} for config in (old, new)
    )
    lines = [
        f"{name}: {before.get(name, '(none)')} -> {after.get(name, '(none)')}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]
    orders = [list(config.optimizer.groups) for config in (old, new)]
    if not lines and orders[0] != orders[1]:
        lines.append(f"optimizer.groups: {', '.join(orders[0])} -> {', '.join(orders[1])}")
    return lines


def schedule_change(old: Config, new: Config) -> str | None:
    """Returns a sentence when another `train.total` changes the learning-rate schedule of the remaining steps."""
    if old.train.total == new.train.total or new.optimizer.schedule == "constant":
        return None
    return (
        f"train.total: {old.train.total} -> {new.train.total} changes the {new.optimizer.schedule} learning-rate "
        f"schedule, which ends at the last step: from here on the run follows the schedule of {new.train.total}."
    )
