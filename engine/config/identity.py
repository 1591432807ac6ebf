"""Identity fields: the settings that decide what a run computes. A resume refuses to change them (`resume.py`).

Identity fields, because another value is another training:
    task.*                          model and loss
    data.target and its arguments   examples; see WEIGHTS
    data.shuffle, .shuffle_window,  order and number of examples
        .limit, .weights_from
    optimizer.*                     updates
    train.global_batch_size         meaning of a step, and so the position in the data
    train.seed                      initial weights, data order, random numbers
    train.precision                 data type of the computation
    train.ema_decay                 part of the state
    train.accumulate                with train.approximate_accumulation: number of updates of the model state

May change, because the computed values stay the same:
    train.total                     length of the run; see `schedule_change`
    optimizer.schedule_arguments    of warmup_stable_decay: its decay; see `schedule_change`
    train.accumulate, approximate_accumulation, steps_per_dispatch, remat, offload_optimizer   how a step is computed
    train.memory_gib                memory that automatic settings may use; the run has stored and checks their values
    mesh.*, sharding.*              devices that compute it
    compiler.*                      machine code of a step
    data.threads, workers, prefetch; cache of engine.Weighted   speed of reading
    data.on_error, .on_change, resilience.*   reaction to failures
    init.*                          initial weights, which the first checkpoint already contains
    stop.*                          reaction to results
    checkpoint.*, evaluations.*, hooks.*, log.*, profile.*, cache.*, tiny.*, name      saving, measuring, logging
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from engine.config import zoo
from engine.config.schedules import STABLE, decay_begin, followers, sections
from engine.config.schema import Arguments, Config, Data, Plain
from engine.config.text import flatten, value_text
from engine.config.zoo import current

_SECTIONS = ("task.", "data.", "optimizer.")
_FREE = ("data.threads", "data.workers", "data.prefetch", "data.on_error", "data.on_change")
WEIGHTED = (
    "engine.Mixture",
    "engine.Weighted",
    "engine.WeightedByRun",
    "engine.data.sampling.mixture.Mixture",
    "engine.data.sampling.weighted.Weighted",
    "engine.experiments.example_weights.WeightedByRun",
)
"""Sources that draw examples by weights."""
WEIGHTS = (
    *("weights", "balance", "tags", "threshold", "interpolate"),
    *("run", "by", "score", "power", "bound"),
    "weights_from",
)
"""Their arguments that decide how often each example is drawn, and the field of `data` that does."""
CACHES = ("cache",)
"""Their arguments that decide nothing but speed."""
_FIELDS = ("train.global_batch_size", "train.seed", "train.precision", "train.ema_decay")


def is_identity(name: str) -> bool:
    """Whether the field of this dotted name decides what a run computes."""
    return name in _FIELDS or (name.startswith(_SECTIONS) and name not in _FREE)


def identity_differences(old: Config, new: Config, ignored: Collection[str] = CACHES) -> list[str]:
    """Returns a line `train.seed: 0 -> 1` for each identity field that differs; `(none)` for a field that one lacks.

    The order of keys matters only for parameter groups, where the first match applies.

    Args:
        old: stored config.
        new: config of the resume.
        ignored: arguments of WEIGHTED sources that may differ. With WEIGHTS too, the weights may.
    """
    free = _settings_of_decays(old, new)
    approximate = old.train.approximate_accumulation or new.train.approximate_accumulation
    before, after = (
        {
            name: value_text(name, zoo.canonical(current(value)) if isinstance(value, str) else value)
            for name, value in flatten(dataclasses.replace(config, data=_without(config.data, ignored)))
            if (is_identity(name) and name not in free) or (approximate and name == "train.accumulate")
        }
        for config in (old, new)
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


def _without(data: Data, names: Collection[str]) -> Data:
    """Returns a section `data` without these arguments of the sources that draw by weights, or `weights_from`."""
    weights_from = None if "weights_from" in names else data.weights_from
    arguments = _plain_arguments(data.target, data.arguments, names)
    return dataclasses.replace(data, arguments=arguments, weights_from=weights_from)


def _plain_arguments(target: str, arguments: Arguments, names: Collection[str]) -> Arguments:
    """Returns the arguments of a source, and of the sources inside it, without these names of `WEIGHTED` sources."""
    dropped = names if target in WEIGHTED else ()

    def plain(value: Plain) -> Plain:
        if isinstance(value, Mapping):
            inner: Any = value
            return _plain_arguments(str(inner.get("target", "")), inner, names)
        return tuple(map(plain, value)) if isinstance(value, tuple) else value

    return {name: plain(value) for name, value in arguments.items() if name not in dropped}


def _settings_of_decays(old: Config, new: Config) -> dict[str, str]:
    """Returns setting -> section, for the settings that shape the decay of warmup_stable_decay in both configs."""
    before, after = sections(old.optimizer), sections(new.optimizer)
    return {
        f"{where}.schedule_arguments.{name}": where
        for where in before.keys() & after.keys()
        if before[where].schedule == after[where].schedule == STABLE
        for name in ("decay", "shape")
    }


def schedule_change(old: Config, new: Config, newest: int = 0, dataset_size: int = 0) -> str | None:
    """Returns a sentence if a changed length of the run, or of its decay, changes learning rates of remaining steps.

    With the schedule warmup_stable_decay there is no such change while both schedules are in the stable phase.

    Args:
        old: stored config.
        new: config of the resume.
        newest: step of the newest checkpoint.
        dataset_size: number of training examples; 0 if it is not known.
    """
    total = f"train.total: {old.train.total} -> {new.train.total}" if old.train.total != new.train.total else ""
    decays = _changed_decays(old, new)
    for where, section in followers(new.optimizer).items():
        change = total or decays.get(where)
        if not change:
            continue
        if section.schedule == STABLE and dataset_size:
            begins = [decay_begin(sections(run.optimizer)[where], run.train, dataset_size) for run in (old, new)]
            if newest <= min(begins):
                continue
        return (
            f"{change} changes the {section.schedule} learning-rate schedule, which ends at the last step: from here "
            f"on the run follows the schedule of {new.train.total}."
        )
    return None


def _changed_decays(old: Config, new: Config) -> dict[str, str]:
    """Returns section -> `optimizer.schedule_arguments.decay: 0.2 -> 500 steps`, where a decay has changed."""
    before, after = dict(flatten(old)), dict(flatten(new))
    found: dict[str, str] = {}
    for name, where in sorted(_settings_of_decays(old, new).items()):
        values = [settings.get(name, "(default)") for settings in (before, after)]
        if values[0] != values[1]:
            found.setdefault(where, f"{name}: {values[0]} -> {values[1]}")
    return found
