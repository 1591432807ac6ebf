"""Which charts a report has: the curves of one metric share a chart, of training, of evaluations and of all runs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine.data.stages import STAGES
from engine.observe.tensorboard import MEASURED
from engine.report.rows import TRAINING

RESULTS, LAYERS, COST = "results", "layers", "cost"  # sections of the report
_LAYER = f"{LAYERS}/"  # precedes the results of `log.layers`: layers/MEASURE and layers/MEASURE/LAYER
MOST_LAYERS = 64  # curves of a chart of layers
FIRST = 12  # charts of results that are shown before the reader asks for all
MOST = 400  # charts of results
WAIT = f"{TRAINING}data_wait_s"
"""Seconds of a step in which the loop waited for data; computed from the time of the step and the share of waits."""

_LAST = ("grad_norm", "learning_rate", "skipped")  # metrics of the engine; those of the Task come first
_COST = (  # title, unit, name -> label
    ("Throughput", "examples/s", {"examples_per_s": "examples/s"}),
    ("Step time", "seconds", {"step_time_s": "step", "data_wait_s": "waiting for data"}),
    ("MFU and HFU", "share of the peak", {"mfu": "MFU", "hfu": "HFU"}),
    ("Model FLOP/s", "all devices", {"flop_per_s": "FLOP/s"}),
    ("Memory", "GiB", {"host_rss_gib": "process", "device_peak_gib": "device, peak"}),
    ("Reading a batch by stage", "seconds, added up over the readers", {f"data_{name}_s": name for name in STAGES}),
    ("Ragged examples", "share", {"data_padding": "padding", "data_imbalance": "imbalance"}),
)


def panels(names: Iterable[str], selects: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the charts: title, section, names of their curves, and whether a chart is shown at first.

    Args:
        names: names of the curves of all runs.
        selects: metrics that select checkpoints.
    """
    found = list(dict.fromkeys(names))
    bases: dict[str, list[str]] = {}
    for name in found:
        base = base_of(name)
        is_measured = name.startswith(TRAINING) and (base in MEASURED or name == WAIT)
        if not is_measured and not name.startswith(_LAYER) and name != "compile_s":
            bases.setdefault(base, []).append(name)
    chosen = {base_of(name) for name in selects}
    order = sorted(bases, key=lambda base: _rank(base, chosen))[:MOST]
    first = [base for base in order if "/" not in base or base in chosen][:FIRST] or order[:FIRST]
    results = [{"title": b, "section": RESULTS, "names": bases[b], "first": b in first} for b in order]
    return results + _layers(found) + [panel for panel in (_cost(*each, found) for each in _COST) if panel]


def _layers(found: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a chart of each measure of layers, with a curve for each layer of the chosen run."""
    measures: dict[str, dict[str, str]] = {}
    for name in found:
        if name.startswith(_LAYER):
            measure, _, layer = name.removeprefix(_LAYER).partition("/")
            measures.setdefault(measure, {})[name] = layer or "whole model"
    return [
        {"title": measure.replace("_", " "), "section": LAYERS, "names": list(labels)[:MOST_LAYERS], "labels": labels}
        for measure, labels in measures.items()
    ]


def _rank(base: str, chosen: set[str]) -> tuple[bool, bool, bool, int]:
    return base.partition("/")[0] in _LAST, base not in chosen, base != "loss", base.count("/")


def _cost(title: str, unit: str, labels: Mapping[str, str], found: Sequence[str]) -> dict[str, Any] | None:
    names = {f"{TRAINING}{name}": label for name, label in labels.items() if f"{TRAINING}{name}" in found}
    return {"title": title, "section": COST, "unit": unit, "names": list(names), "labels": names} if names else None


def base_of(name: str) -> str:
    """Returns the name of a metric without what precedes it: "accuracy" of "heldout/accuracy"."""
    return name.partition("/")[2] or name
