"""What single fields may hold beyond their type: ranges, choices, units, patterns.

Owns: one table, section -> field -> check. Does not own: types (`fields.py`) and combinations of fields
(`validation.py`). A check takes a value that has the right type and is not None, and its path, and raises FieldError.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from engine.config import hardware, schema
from engine.config.duration import CLOCK_UNITS, DATA_UNITS, Duration
from engine.config.errors import FieldError, did_you_mean
from engine.config.fields import Slot, typed

Check = Callable[[Any, str], None]

MOST_WORKERS, MOST_DEVICES = 1024, 4096  # a slip of the finger must not take the machine down


def check_value(slot: Slot, value: Any, path: str) -> Any:
    """Returns `value` as the slot keeps it, after the checks of its type and of its field.

    Raises:
        FieldError: where, what was found, what is allowed.
    """
    value = typed(slot, value, path)
    check = CHECKS.get(slot.owner, {}).get(slot.name) if slot.owner else None
    if check is not None and value is not None:
        check(value, path)
    return value


def _at_least(low: float, below: float | None = None) -> Check:
    def check(value: Any, path: str) -> None:
        if value < low or (below is not None and value >= below):
            limit = f"at least {low}" if below is None else f"at least {low} and less than {below}"
            raise FieldError(path, f"found {value}, allowed is {limit}", "")

    return check


def _above(low: float) -> Check:
    def check(value: Any, path: str) -> None:
        if value <= low:
            raise FieldError(path, f"found {value}, allowed is more than {low}", "")

    return check


def _one_of(*choices: str) -> Check:
    def check(value: Any, path: str) -> None:
        if value not in choices:
            raise FieldError(path, f"found {value!r}", f"Allowed: {', '.join(choices)}.{did_you_mean(value, choices)}")

    return check


def _duration(*units: str, zero: bool = False) -> Check:
    def check(value: Any, path: str) -> None:
        duration = Duration.parse(value, path)
        if duration.unit not in units:
            raise FieldError(path, f"found {value!r}", f"Units here: {', '.join(units)}.")
        if duration.value == 0 and not zero:
            raise FieldError(path, f"found {value!r}, a length of nothing", "Use '1 step' for the shortest.")

    return check


def _pattern(value: Any, path: str) -> None:
    try:
        re.compile(value)
    except re.error as error:
        raise FieldError(path, f"found {value!r}, not a regular expression", f"Python says: {error}.") from None


def _dotted(value: Any, path: str) -> None:
    if value and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", value):
        raise FieldError(path, f"found {value!r}, not a dotted path", "Write package.module.Name.")


def _name(value: Any, path: str) -> None:
    if value and not re.fullmatch(r"\w[\w.-]*", value):
        raise FieldError(path, f"found {value!r}", "It names a folder: use letters, digits, '_', '-' and '.'.")


def _axis(value: Any, path: str) -> None:
    if value != -1 and value < 1:
        raise FieldError(path, f"found {value}", "Allowed: a number of devices, or -1 for what is left.")


def _cpu_devices(value: Any, path: str) -> None:
    if value != "auto" and (isinstance(value, str) or not 1 <= value <= MOST_DEVICES):
        raise FieldError(path, f"found {value!r}", f"Allowed: 1 to {MOST_DEVICES} devices, auto, or None.")


def _best(value: Any, path: str) -> None:
    if not re.fullmatch(r"[^/\s]+/\S+", value):
        raise FieldError(path, f"found {value!r}", "Write evaluation/metric, such as 'heldout/accuracy'.")


def _remat(value: Any, path: str) -> None:
    if value not in ("none", "full", "dots") and not re.fullmatch(r"(save|offload):\w+(,\w+)*", value):
        advice = (
            "Allowed: none, full, dots, save:NAME,NAME or offload:NAME,NAME with names of engine.layers.checkpoint."
        )
        raise FieldError(path, f"found {value!r}", advice)


_BY_DATA = _duration(*DATA_UNITS)
_TARGET = {"target": _dotted}

CHECKS: Mapping[type, Mapping[str, Check]] = {
    schema.Config: {"name": _name},
    schema.Target: _TARGET,
    schema.Data: {
        **_TARGET,
        "limit": _at_least(1),
        "threads": _at_least(1),
        "workers": _at_least(0, below=MOST_WORKERS + 1),
        "prefetch": _at_least(0),
        "on_error": _one_of("stop", "skip"),
    },
    schema.Group: {"match": _pattern, "learning_rate_scale": _at_least(0), "weight_decay": _at_least(0)},
    schema.Optimizer: {
        **_TARGET,
        "learning_rate": _at_least(0),
        "schedule": _one_of("constant", "linear", "cosine"),
        "warmup": _duration(*DATA_UNITS, zero=True),
        "final_scale": _at_least(0),
        "clip_norm": _above(0),
        "decay": _one_of("matrices", "all", "none"),
        "trainable": _pattern,
    },
    schema.Train: {
        "total": _BY_DATA,
        "global_batch_size": _at_least(1),
        "seed": _at_least(0, below=2**32),
        "accumulate": _at_least(1),
        "steps_per_dispatch": _at_least(1),
        "precision": _one_of("float32", "bfloat16"),
        "ema_decay": _at_least(0, below=1),
        "remat": _remat,
    },
    schema.Slices: dict.fromkeys(hardware.AXES, _axis),
    schema.MeshSpec: {
        "preset": _one_of("auto", *hardware.MESH_PRESETS),
        **dict.fromkeys(hardware.AXES, _axis),
        "cpu_devices": _cpu_devices,
    },
    schema.Sharding: {
        "context": _one_of("ring", "all-to-all"),
        "microbatches": _at_least(1),
        "repeats": _at_least(1),
    },
    schema.Checkpoint: {
        "every": _duration(*DATA_UNITS, *CLOCK_UNITS),
        "keep_latest": _at_least(1),
        "best": _best,
        "best_mode": _one_of("max", "min"),
        "keep_best": _at_least(1),
        "on_failure": _one_of("continue", "stop"),
        "timeout": _duration(*CLOCK_UNITS),
    },
    schema.Resilience: {
        "divergence": _one_of("stop", "skip", "rollback"),
        "spike": _above(1),
        "replica_check": _BY_DATA,
        "hang": _duration(*CLOCK_UNITS),
    },
    schema.Evaluation: {"every": _BY_DATA, "batch_size": _at_least(1)},
    schema.Hook: {**_TARGET, "every": _BY_DATA},
    schema.Log: {"every": _BY_DATA, "progress": _one_of("auto", "bar", "lines", "none")},
    schema.Profile: {"start": _at_least(0), "steps": _at_least(1)},
    schema.Cache: {"max_gib": _above(0)},
}
