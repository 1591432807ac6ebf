"""Arguments of the learning-rate schedules, and which schedules follow the length of the run.

`training/schedules.py` has the formulas. A schedule that follows the length has other rates if `train.total` changes,
which a resume accepts only with a flag.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction

from engine.base.duration import DATA_UNITS, Duration, RunSize
from engine.base.errors import FieldError, did_you_mean
from engine.config.fields import join, show
from engine.config.schema import Optimizer, Plain, Target, Train
from engine.config.setting import MAX_INTEGER, MAX_NUMBER, SCHEDULES
from engine.config.target import check, parameters_of, resolve

STABLE = "warmup_stable_decay"
DECAY, DECAY_SHAPE = 0.2, "linear"
DECAY_SHAPES = ("linear", "cosine", "sqrt")
RISE, START = 0.3, 0.04  # of one_cycle; those of `optax.cosine_onecycle_schedule`
CYCLE_SHAPES = ("cosine", "linear")
LENGTHS = ("total_steps", "decay_steps", "transition_steps")
"""Parameters of a function that receive the number of steps after the warm-up if the config does not set them."""


def sections(config: Optimizer) -> dict[str, Optimizer]:
    """Returns the settings of the optimizer and of each group, by their path in the config."""
    return {"optimizer": config, **{f"optimizer.groups.{name}": config.of_group(name) for name in config.groups}}


def check_schedules(config: Optimizer) -> None:
    """Raises FieldError for an argument that a schedule does not take or allow. Imports no target."""
    for name, group in config.groups.items():
        if group.schedule_arguments and group.schedule is None:
            where = f"optimizer.groups.{name}.schedule_arguments"
            raise FieldError(where, "is set, but schedule is not", f"Set optimizer.groups.{name}.schedule too.")
    for where, section in sections(config).items():
        if section.schedule not in SCHEDULES:
            continue
        checks = _CHECKS.get(section.schedule, {})
        for name, value in section.schedule_arguments.items():
            path = f"{where}.schedule_arguments.{name}"
            if name not in checks:
                takes = f"It takes: {', '.join(checks) or 'no arguments'}.{did_you_mean(name, checks)}"
                raise FieldError(path, f"the schedule {section.schedule} takes no such argument", takes)
            checks[name](value, path)
        if section.schedule == "piecewise" and "scales" not in section.schedule_arguments:
            advice = "Set duration -> factor on the learning rate: {'30 epochs': 0.1}."
            raise FieldError(f"{where}.schedule_arguments.scales", "is missing, piecewise needs it", advice)
        if section.schedule == "warm_restarts" and "first" not in section.schedule_arguments:
            advice = "Set the length of the first cycle: '10 epochs'."
            raise FieldError(f"{where}.schedule_arguments.first", "is missing, warm_restarts needs it", advice)
        no_warmup = section.warmup.value == 0 and "timescale" not in section.schedule_arguments
        if section.schedule == "inverse_sqrt" and no_warmup:
            advice = "Set it to a duration, or set a warm-up, whose length is the default."
            raise FieldError(f"{where}.schedule_arguments.timescale", "is missing, inverse_sqrt needs it", advice)


def _check_decay(value: Plain, path: str) -> None:
    if isinstance(value, str):
        _check_duration(value, path)
    elif type(value) not in (int, float) or not 0 < float(str(value)) <= 1:
        raise FieldError(path, f"found {show(value)}", "Allowed: a duration, or a fraction of the run in (0, 1].")


def _check_duration(value: Plain, path: str) -> None:
    if not isinstance(value, str):
        raise FieldError(path, f"found {show(value)}, allowed is a duration", "Write '500 steps' or '3 epochs'.")
    duration = Duration.parse(value, path, DATA_UNITS)
    if duration.is_clock or duration.value == 0:
        raise FieldError(path, f"found {value!r}", f"Write a length above 0. Units here: {', '.join(DATA_UNITS)}.")


def _check_one_of(*choices: str) -> Callable[[Plain, str], None]:
    def check(value: Plain, path: str) -> None:
        if value not in choices:
            raise FieldError(path, f"found {show(value)}", f"Allowed: {', '.join(choices)}.")

    return check


def _check_fraction(value: Plain, path: str) -> None:
    if type(value) not in (int, float) or not 0 <= float(str(value)) <= 1:
        raise FieldError(path, f"found {show(value)}", "Allowed: a fraction in [0, 1].")


def _check_factor(value: Plain, path: str) -> None:
    if type(value) is not int or not 1 <= value <= MAX_INTEGER:
        raise FieldError(path, f"found {show(value)}", "Allowed: a whole number of at least 1.")


def _check_scales(value: Plain, path: str) -> None:
    if not isinstance(value, Mapping) or not value:
        raise FieldError(path, f"found {show(value)}", "Allowed: duration -> factor, such as {'30 epochs': 0.1}.")
    for time, scale in value.items():
        _check_duration(time, join(path, time))
        if type(scale) not in (int, float) or not 0 <= float(str(scale)) <= MAX_NUMBER:
            raise FieldError(join(path, time), f"found {show(scale)}", "Allowed: a number of at least 0.")


_CHECKS: Mapping[str, Mapping[str, Callable[[Plain, str], None]]] = {
    "warmup_stable_decay": {"decay": _check_decay, "shape": _check_one_of(*DECAY_SHAPES)},
    "inverse_sqrt": {"timescale": _check_duration},
    "piecewise": {"scales": _check_scales},
    "one_cycle": {"rise": _check_fraction, "start": _check_fraction, "shape": _check_one_of(*CYCLE_SHAPES)},
    "warm_restarts": {"first": _check_duration, "factor": _check_factor},
}


def decay_steps(section: Optimizer, size: RunSize) -> int:
    """Returns the length of the decay of warmup_stable_decay; at most the steps after the warm-up, at least 1."""
    decay = section.schedule_arguments.get("decay", DECAY)
    if isinstance(decay, str):
        steps = Duration.parse(decay).steps(size.batch_size, size.dataset_size)
    else:
        steps = round(Fraction(str(decay)) * size.total_steps)
    return max(1, min(steps, size.total_steps - section.warmup.steps(size.batch_size, size.dataset_size)))


def decay_begin(section: Optimizer, train: Train, dataset_size: int) -> int:
    """Returns the step at which warmup_stable_decay begins to decay."""
    batch_size = train.global_batch_size
    size = RunSize(batch_size, dataset_size, train.total.steps(batch_size, dataset_size))
    return size.total_steps - decay_steps(section, size)


def check_function(section: Optimizer, where: str) -> tuple[str, ...]:
    """Imports and checks the function of a schedule that is given by dotted path.

    Returns:
        Its parameters of `LENGTHS` that the config does not set.

    Raises:
        ConfigError: the function does not exist, or does not take the arguments.
    """
    target = function_of(section)
    try:
        parameters = parameters_of(resolve(target, arguments_path(where))) or {}
        given = tuple(name for name in LENGTHS if name in parameters and name not in target.arguments)
        check(target, arguments_path(where), given)
    except FieldError as error:
        if error.path == f"{arguments_path(where)}.target":
            raise FieldError(f"{where}.schedule", error.problem, error.advice) from error
        raise
    return given


def check_functions(optimizer: Optimizer) -> None:
    """Imports and checks the functions of all schedules. Raises ConfigError as `check_function`."""
    for where, section in sections(optimizer).items():
        if section.schedule not in SCHEDULES:
            check_function(section, where)


def function_of(section: Optimizer) -> Target:
    """Returns the function of a schedule that is given by dotted path, with its arguments."""
    return Target(target=section.schedule, arguments=section.schedule_arguments)


def arguments_path(where: str) -> str:
    """Returns the path of the arguments of a schedule in the config."""
    return f"{where}.schedule_arguments"


def followers(optimizer: Optimizer) -> dict[str, Optimizer]:
    """Returns the optimizer and the groups whose learning rate follows the length of the run, by path."""
    free = ("constant", "inverse_sqrt", "piecewise", "warm_restarts")
    found = {}
    for where, section in sections(optimizer).items():
        if section.schedule not in free and (section.schedule in SCHEDULES or check_function(section, where)):
            found[where] = section
    return found
