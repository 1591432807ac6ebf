"""Rules that several fields of a config share: which values are allowed."""

from engine.base.duration import CLOCK_UNITS, DATA_UNITS, UNITS
from engine.base.errors import FieldError
from engine.config.setting import Rule, at_least, in_units, matching, one_of

MAX_WORKERS, MAX_DEVICES, MAX_AXIS = 1024, 4096, 2**20  # so that a typing error does not overload the machine
MAX_GIB = 2**20  # GiB in a file system
AUTO = "auto"  # value of train.global_batch_size and train.accumulate until the run has chosen a number


def _axis_size(value: object, path: str) -> None:
    if value != -1 and not (isinstance(value, int) and 1 <= value <= MAX_AXIS):
        advice = f"Allowed: a number of devices, at most {MAX_AXIS}, or -1 for all remaining devices."
        raise FieldError(path, f"found {value}", advice)


def _cpu_devices(value: object, path: str) -> None:
    if value != "auto" and not (isinstance(value, int) and 1 <= value <= MAX_DEVICES):
        raise FieldError(path, f"found {value!r}", f"Allowed: 1 to {MAX_DEVICES} devices, auto, or None.")


def _or_auto(numbers: Rule, what: str, auto: str) -> Rule:
    """Allows numbers, and auto; `what` names the numbers in errors, and `auto` says what auto does."""

    def check(value: object, path: str) -> None:
        if isinstance(value, str) and value != AUTO:
            raise FieldError(path, f"found {value!r}", f"Allowed: {what}, or auto.")
        if value != AUTO:
            numbers.check(value, path)

    return Rule(f"{numbers.text.removesuffix('.')}, and auto, which {auto}.", check)


BY_DATA, BY_CLOCK, ANY_UNIT = in_units(*DATA_UNITS), in_units(*CLOCK_UNITS), in_units(*UNITS)
AXIS_SIZE = Rule("", _axis_size)
CPU_DEVICES = Rule("", _cpu_devices)
WORKERS = _or_auto(at_least(0, below=MAX_WORKERS + 1), "a number of processes", "finds the number")
SIZE = _or_auto(at_least(1), "a number", "takes what fits into the memory of the devices")
PREFETCH = _or_auto(at_least(0), "a number of dispatches", "fills a share of the free memory")
FOLDER = matching(r".+", "Name a folder, or None.")
NAME = matching(r"(\w[\w.-]{0,99})?", "It is the name of a folder: use up to 100 letters, digits, '_', '-' and '.'.")
DOTTED_PATH = matching(r"([A-Za-z_]\w*(\.[A-Za-z_]\w*)+)?", "Write package.module.Name.", ", not a dotted path")
SCHEDULES = ("constant", "linear", "cosine", "warmup_stable_decay", "inverse_sqrt", "piecewise")


def _schedule(value: object, path: str) -> None:
    if value not in SCHEDULES and "." not in str(value):
        one_of(*SCHEDULES, "or the dotted path of a function").check(value, path)
    DOTTED_PATH.check(value if value not in SCHEDULES else "", path)


SCHEDULE = Rule(f"Allowed: {', '.join(SCHEDULES)}, or the dotted path of a function.", _schedule)
METRIC = matching(r"[^/\s]+/\S+", "Write evaluation/metric or hook/metric, such as 'heldout/accuracy'.")
SCORE = matching(r"\S+", "Write the name of a metric without that of the evaluation, such as 'loss' or 'ap/car'.")
REMAT = matching(
    r"none|full|dots|(save|offload):\w+(,\w+)*",
    "Allowed: none, full, dots, save:NAME,NAME or offload:NAME,NAME with names of engine.layers.checkpoint.",
)
