"""The chunks that do not compare optimizers on tasks: problems with known answers, schedules, and settings of a run.

The settings of a run are compared with AdamW on the language model, from its tuned point.
"""

from collections.abc import Sequence

from benchmarks.optimizers import rows
from benchmarks.optimizers.groups import Group, tuned
from benchmarks.optimizers.optimizers import OPTIMIZERS
from benchmarks.optimizers.problems import MOMENTA, PROBLEMS, STEADY_RATES
from benchmarks.optimizers.rows import Row, Value
from benchmarks.optimizers.tasks import TASKS

BASE, TASK, OPTIMIZER = "lm-adamw", "lm", "adamw"
"""The chunk whose best point the others vary, its task and its optimizer."""
SPEC = OPTIMIZERS[OPTIMIZER]
BATCHES = {2: 2400, 4: 1400, 8: 900, 16: 600, 32: 420, 64: 320}
"""Batch size -> steps of its runs, which reach about the same loss."""
BUDGETS = (250, 500, 1000)
EMA = (0.0, 0.9, 0.98, 0.99, 0.995, 0.998)
CLIP = (0.0, 0.1, 0.3, 1.0, 3.0)
RATES = (0.5, 1.0, 2.0)
"""Factors on the learning rate of the base where it is tuned again."""
STEADY = "steady momentum="
"""Begins the names of the groups with a constant learning rate on the noisy quadratic."""
_RATES, _DECADES, _MIDDLE = 10, 4.0, 10.0
"""Learning rates on the problems, decades that they cover, and the middle over the usual rate: the runs are short, and
the parameters move as far as in a long one."""


class MissingRows(Exception):
    """A chunk needs rows of another one."""


def base(found: Sequence[Row]) -> dict[str, Value]:
    """Returns the settings of the best tuning run of `BASE`. Raises MissingRows."""
    row = rows.best(found, BASE, "trials")
    if row is None:
        raise MissingRows(f"this chunk varies the best run of {BASE}, which has no rows: run --chunk={BASE} first.")
    return dict(row.run.settings)


def problem_groups(name: str) -> list[Group]:
    """Returns a group for each optimizer on a problem: learning rates over four decades."""
    steps, groups = PROBLEMS[name]().steps, []
    seeds = rows.SEEDS if name == "noisy_quadratic" else ()  # the other problem has no random number
    for optimizer, spec in OPTIMIZERS.items():
        shares = [(place + 0.5) / _RATES - 0.5 for place in range(_RATES)]
        rates = [float(f"{_MIDDLE * spec.rate * 10 ** (_DECADES * share):.3g}") for share in shares]
        points = [{"learning_rate": rate, "warmup": 0.05} for rate in rates]
        groups.append(tuned(name, optimizer, name, optimizer, points, steps, seeds))
    if name == "noisy_quadratic":
        for momentum in MOMENTA:
            fixed: dict[str, Value] = {"warmup": 0.0, "schedule": "constant", "momentum": momentum, "nesterov": 0}
            points = [{"learning_rate": rate, **fixed} for rate in STEADY_RATES]
            groups.append(tuned(name, f"{STEADY}{momentum:g}", name, "sgd", points, steps, ()))
    return groups


def _batch_size(found: Sequence[Row]) -> list[Group]:
    settings, groups = base(found), []
    for batch, steps in BATCHES.items():
        scale = (batch / 8) ** 0.5
        points = [_point(settings, factor * scale, batch=batch, schedule="constant") for factor in RATES]
        groups.append(tuned("batch-size", f"batch={batch}", TASK, OPTIMIZER, points, steps, ()))
    return groups


def _accumulation(found: Sequence[Row]) -> list[Group]:
    settings = base(found)
    return [_one("accumulation", _point(settings, batch=16, accumulate=count), f"{count}", 400) for count in (1, 2, 4)]


def _precision(found: Sequence[Row]) -> list[Group]:
    settings, steps = base(found), TASKS[TASK].steps
    return [
        _one("precision", _point(settings, precision=name), name, steps, rows.SEEDS) for name in ("float32", "bfloat16")
    ]


def _ema(found: Sequence[Row]) -> list[Group]:
    settings, steps = base(found), TASKS[TASK].steps
    return [
        _one("ema", _point(settings, ema=decay, schedule=schedule), f"{schedule} {decay:g}", steps)
        for schedule in ("cosine", "constant")
        for decay in EMA
    ]


def _clipping(found: Sequence[Row]) -> list[Group]:
    settings, steps = base(found), TASKS[TASK].steps
    return [
        _one("clipping", _point(settings, factor, clip_norm=clip), f"rate x {factor:g}, clip {clip:g}", steps)
        for factor in (1.0, 4.0)
        for clip in CLIP
    ]


def _schedules(found: Sequence[Row]) -> list[Group]:
    settings, groups = base(found), []
    stable = {"schedule": "warmup_stable_decay", "decay": 0.2}
    kinds = [(f"{name} {steps}", given, steps) for name, given in (("cosine", {"schedule": "cosine"}), ("wsd", stable))
             for steps in BUDGETS]  # fmt: skip
    kinds += [(f"{name} {BUDGETS[-1]}", {"schedule": name}, BUDGETS[-1]) for name in ("linear", "constant")]
    for name, given, steps in kinds:
        # Every budget has as many steps of warm-up: the stable phases of all budgets are parts of one run.
        warmup = float(f"{float(settings['warmup']) * BUDGETS[-1] / steps:.3g}")
        points = [_point(settings, factor, **given, warmup=min(warmup, 0.5)) for factor in RATES]
        groups.append(tuned("schedules", name, TASK, OPTIMIZER, points, steps))
    return groups


def _point(settings: dict[str, Value], factor: float = 1.0, **changes: Value) -> dict[str, Value]:
    """Returns settings with a learning rate that is multiplied by a factor."""
    rate = float(f"{float(settings['learning_rate']) * factor:.3g}")
    return {**settings, "learning_rate": rate, **changes}


def _one(chunk: str, point: dict[str, Value], group: str, steps: int, seeds: Sequence[int] = ()) -> Group:
    return tuned(chunk, group, TASK, OPTIMIZER, [point], steps, seeds)


CHUNKS = (
    *(
        (name, "problem with a known answer, all optimizers", lambda found, name=name: problem_groups(name), ())
        for name in PROBLEMS
    ),
    ("schedules", "cosine, warmup-stable-decay, linear and constant, three budgets", _schedules, (BASE,)),
    ("batch-size", "steps to a loss over the batch size", _batch_size, (BASE,)),
    ("accumulation", "one batch in 1, 2 and 4 microbatches", _accumulation, (BASE,)),
    ("precision", "float32 and bfloat16", _precision, (BASE,)),
    ("ema", "decays of the average of the weights, with and without a decay of the rate", _ema, (BASE,)),
    ("clipping", "limits of the norm of the gradient, at the best rate and at four times it", _clipping, (BASE,)),
)
"""Name, what it shows, groups, and the chunks that it needs."""
