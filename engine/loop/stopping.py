"""Early stopping: the conditions of the config section `stop`, and the record of a run that ended before its last step.

The conditions are a pure function of the stored results of evaluations and hooks. So a resumed run, and every process
of a run, decides as an uninterrupted run does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from engine.base import formatting, json_text
from engine.base.errors import RunError
from engine.cluster import group
from engine.config.schema import Stop as StopConfig
from engine.config.zoo import current_settings
from engine.metrics.direction import mode_of
from engine.run.directory import RunDirectory

_SECTIONS = ("stop.", "hooks.", "train.total")  # a change of these fields makes a run continue that was stopped


def reason_to_stop(config: StopConfig, history: Mapping[int, float]) -> str:
    """Returns why the run ends, as a part of a sentence; "" if it continues.

    Args:
        config: the conditions.
        history: step -> value of `config.metric`, up to the present step. Values that are not finite do not count.
    """
    sign = 1 if mode_of(config.mode, config.metric or "") == "max" else -1
    values = [(step, value) for step, value in sorted(history.items()) if math.isfinite(value)]
    if not values:
        return ""
    name, (_, latest) = config.metric, values[-1]
    if config.target is not None and sign * latest >= sign * config.target:
        return f"{name} is {formatting.number(latest)}, which reaches stop.target = {config.target:g}"
    best_step, best = values[0]
    since = 0
    for step, value in values[1:]:
        if sign * (value - best) > config.min_delta:
            best_step, best, since = step, value, 0
        else:
            since += 1
    if config.patience is None or since < config.patience:
        return ""
    times = f"{since} time{'s' * (since > 1)}"
    return f"{name} was measured {times} without an improvement over {formatting.number(best)} of step {best_step}"


@dataclass(frozen=True)
class StopRecord:
    """`stopped.json`: where and why a run ended before its last step, and the settings that may change this."""

    step: int
    reason: str
    settings: Mapping[str, str]

    @classmethod
    def of(cls, step: int, reason: str, settings: Mapping[str, str]) -> "StopRecord":
        """Returns the record of a run that ends with these settings, of all fields by name."""
        return cls(step, reason, {name: text for name, text in settings.items() if name.startswith(_SECTIONS)})


def write(directory: RunDirectory, record: StopRecord) -> None:
    """Stores the record; the primary writes it. Raises RunError in every process."""
    text = json_text.dumps(vars(record), indent=1) + "\n"
    group.run_on_primary(lambda: directory.lease.replace_text(directory.stopped, text), "the record of the stop")


def stopped_reason(directory: RunDirectory, step: int, settings: Mapping[str, str]) -> str:
    """Returns why the run was stopped at this step; "" if it was not, or if `stop`, `hooks` or `train.total` changed.

    Args:
        directory: the run directory.
        step: step of the newest checkpoint.
        settings: field -> text, of the config (`config.text.field_texts`).

    Raises:
        RunError: the record cannot be read.
    """
    record = group.run_on_primary(lambda: _read(directory), "the record of the stop")
    if record is None:
        return ""
    stopped_at, reason, stored = record
    same = stopped_at == step and _comparable(stored) == _comparable(StopRecord.of(step, reason, settings).settings)
    return reason if same else ""


def _comparable(settings: Mapping[str, str]) -> dict[str, str]:
    """Returns settings as texts that are equal where they mean the same.

    An earlier version stored other names of the zoo's code, and the mode max where the default is auto today.
    """
    found = current_settings(settings)
    if "stop.mode" in found:
        found["stop.mode"] = mode_of(found["stop.mode"], found.get("stop.metric", ""))
    return found


def ended(directory: RunDirectory, step: int, total_steps: int, settings: Mapping[str, str]) -> tuple[str, str]:
    """Returns why a run has ended early, and a sentence for the user if it has no steps left; "" otherwise.

    Args:
        directory, step, settings: as for `stopped_reason`.
        total_steps: steps of the run.
    """
    fresh = "or start a new run with --fresh"
    if step == total_steps:
        return "", f"this run is finished; increase train.total to train longer, {fresh}"
    if not (reason := stopped_reason(directory, step, settings)):
        return "", ""
    change = "To continue it, change the settings of stop or of the hook"
    return reason, f"this run has ended early: {reason}. {change}, {fresh}"


def _read(directory: RunDirectory) -> list | None:
    try:
        record = StopRecord(**json_text.read(directory.stopped, {"step": int, "reason": str, "settings": {str: str}}))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(
            f"{directory.stopped}: is not the record of a stopped run ({json_text.reason(error)}). Remove this "
            "file: the run then continues from its newest checkpoint."
        ) from error
    return list(vars(record).values())
