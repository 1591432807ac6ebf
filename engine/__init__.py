"""Convoy, a training engine for JAX: the public API for authors of models.

Names are imported on first use, so that `import engine.config` does not load jax. `_MODULES` repeats the imports
below, which only type checkers execute; a test compares the two.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine import (
        adapters,
        augmentation,
        bundles,
        hub,
        layers,
        metrics,
        optimizers,
        perception,
        plot,
        quantization,
        readers,
        sweeps,
        tuning,
    )
    from engine.api.cooldown import cooldown
    from engine.api.explain import explain
    from engine.api.follow import follow
    from engine.api.inference import checkpoints, evaluate, evaluate_steps, export, predict
    from engine.api.saved_run import LoadedRun, goodput, load
    from engine.api.train import train
    from engine.augmentation.source import augmented
    from engine.base.errors import ConvoyError, DataError, TaskError
    from engine.bundles.exported import exported
    from engine.data.context import Context
    from engine.data.ragged.balanced import Balanced
    from engine.data.ragged.packing import Packed
    from engine.data.ragged.padded import Bucketed, Padded
    from engine.data.sampling.mixture import Mixture
    from engine.data.sampling.weighted import Weighted
    from engine.data.source import ArraySource, Source
    from engine.data.stages import stage
    from engine.data.streams.stream import Stream
    from engine.datasets.check import check_dataset
    from engine.datasets.write import write_dataset
    from engine.experiments.example_weights import WeightedByRun
    from engine.joint.source import Joint
    from engine.joint.uncertainty import UncertaintyWeights
    from engine.loop.hooks import Stop
    from engine.loop.trainer import Trainer
    from engine.metrics.mean import Mean
    from engine.metrics.metric import Metric
    from engine.observe.summary import Summary
    from engine.planning.plan import plan
    from engine.sequences.reset import reset_at_starts
    from engine.sequences.sequences import Sequences
    from engine.storage.mounts import local_path
    from engine.sweeps.api import sweep
    from engine.training.loss import Loss
    from engine.training.task import Task

__version__ = "0.2.0"  # as in pyproject.toml

__all__ = [
    "ArraySource",
    "Balanced",
    "Bucketed",
    "Context",
    "ConvoyError",
    "DataError",
    "Joint",
    "LoadedRun",
    "Loss",
    "Mean",
    "Metric",
    "Mixture",
    "Packed",
    "Padded",
    "Sequences",
    "Source",
    "Stop",
    "Stream",
    "Summary",
    "Task",
    "TaskError",
    "Trainer",
    "UncertaintyWeights",
    "Weighted",
    "WeightedByRun",
    "adapters",
    "augmentation",
    "augmented",
    "bundles",
    "check_dataset",
    "checkpoints",
    "cooldown",
    "evaluate",
    "evaluate_steps",
    "explain",
    "export",
    "exported",
    "follow",
    "goodput",
    "hub",
    "layers",
    "load",
    "local_path",
    "metrics",
    "optimizers",
    "perception",
    "plan",
    "plot",
    "predict",
    "quantization",
    "readers",
    "reset_at_starts",
    "stage",
    "sweep",
    "sweeps",
    "train",
    "tuning",
    "write_dataset",
]

_MODULES = {
    "engine": (
        "adapters",
        "augmentation",
        "bundles",
        "hub",
        "layers",
        "metrics",
        "optimizers",
        "perception",
        "plot",
        "quantization",
        "readers",
        "sweeps",
        "tuning",
    ),
    "engine.augmentation.source": ("augmented",),
    "engine.bundles.exported": ("exported",),
    "engine.base.errors": ("ConvoyError", "DataError", "TaskError"),
    "engine.data.ragged.balanced": ("Balanced",),
    "engine.data.context": ("Context",),
    "engine.data.sampling.mixture": ("Mixture",),
    "engine.data.ragged.packing": ("Packed",),
    "engine.data.ragged.padded": ("Bucketed", "Padded"),
    "engine.data.source": ("ArraySource", "Source"),
    "engine.data.stages": ("stage",),
    "engine.data.streams.stream": ("Stream",),
    "engine.data.sampling.weighted": ("Weighted",),
    "engine.datasets.check": ("check_dataset",),
    "engine.datasets.write": ("write_dataset",),
    "engine.experiments.example_weights": ("WeightedByRun",),
    "engine.joint.source": ("Joint",),
    "engine.joint.uncertainty": ("UncertaintyWeights",),
    "engine.api.cooldown": ("cooldown",),
    "engine.api.explain": ("explain",),
    "engine.api.train": ("train",),
    "engine.api.follow": ("follow",),
    "engine.api.inference": ("checkpoints", "evaluate", "evaluate_steps", "export", "predict"),
    "engine.loop.hooks": ("Stop",),
    "engine.loop.trainer": ("Trainer",),
    "engine.metrics.mean": ("Mean",),
    "engine.metrics.metric": ("Metric",),
    "engine.storage.mounts": ("local_path",),
    "engine.sweeps.api": ("sweep",),
    "engine.observe.summary": ("Summary",),
    "engine.planning.plan": ("plan",),
    "engine.sequences.reset": ("reset_at_starts",),
    "engine.sequences.sequences": ("Sequences",),
    "engine.api.saved_run": ("LoadedRun", "goodput", "load"),
    "engine.training.loss": ("Loss",),
    "engine.training.task": ("Task",),
}


def lazy_exports(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Returns `__getattr__` and `__dir__` of a package whose names are imported on first use.

    `etils.epy.lazy_api_imports` does the same without the table, but it replaces `builtins.__import__` meanwhile: an
    import in another thread at that moment silently gets a lazy module. It also takes 30 ms of processor time to
    import, `import engine` 20 ms.

    Args:
        package: name of the package.
        modules: module -> the names that it provides; the package itself for its submodules.
    """
    sources = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> object:
        if (module := sources.get(name)) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if module == package:
            value: object = importlib.import_module(f"{package}.{name}")
        else:
            value = getattr(importlib.import_module(module), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted(sources)


__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
