"""The tasks of the laboratory: configs of this repository, shortened to about half a minute of one core.

A run is an ordinary config of the engine. These settings of a run change it:

- `learning_rate`, `weight_decay`, `clip_norm`, `schedule`: of the section `optimizer`; clip_norm 0: no clipping.
- `warmup`: as a fraction of the steps. `decay`: of `warmup_stable_decay`, likewise.
- `width`, `mup`: of the language model (`widths.py`).
- `batch`, `accumulate`, `precision`, `ema`: of the section `train`; ema 0: no average.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.optimizers import widths
from benchmarks.optimizers.optimizers import OptimizerSpec
from benchmarks.optimizers.rows import Run
from convoy_zoo.configs import digits, fashion_mnist, forecast_eth_ucy, lm_stdlib, vit_fashion

type ConfigDict = Any
"""An `ml_collections.ConfigDict`, whose fields have no types."""
VALIDATION = "validation"
"""Name of the only evaluation of a run."""


@dataclasses.dataclass(frozen=True)
class LabTask:
    """A task.

    Attributes:
        title: name for people.
        make: returns the config, given the folder of the data that no package has.
        steps: steps of a run.
        loss: result of the evaluation by which runs are judged; smaller is better.
        metric: a second result; empty for none.
        full: what the whole config reaches, as its file documents it.
    """

    title: str
    make: Callable[[str], ConfigDict]
    steps: int
    loss: str
    metric: str
    full: str


def _fashion(full: ConfigDict, **changes: object) -> ConfigDict:
    # Without shifted and mirrored images, which are made on the host: reading would take as long as training.
    full.data = dict(target="convoy_zoo.models.fashion_mnist.Photographs", split="train")
    data = dict(target="convoy_zoo.models.fashion_mnist.Photographs", split="test", limit=2000)
    return _short(full, dict(data=data, batch_size=250), changes)


def _cnn(folder: str) -> ConfigDict:
    return _fashion(fashion_mnist.get_config(), **{"task.width": 8, "train.global_batch_size": 128})


def _vit(folder: str) -> ConfigDict:
    changes = {"task.patch": 7, "task.width": 48, "task.depth": 3, "train.global_batch_size": 64}
    return _fashion(vit_fashion.get_config(), **changes)


def _language(folder: str) -> ConfigDict:
    full = lm_stdlib.get_config()
    data = dict(target="convoy_zoo.models.stdlib_text.StdlibText", split="validation", length=128, limit=128)
    changes = {"task.width": 64, "task.hidden": 192, "task.depth": 3, "task.heads": 4, "data.length": 128}
    return _short(full, dict(data=data, batch_size=32), changes)


def _forecasting(folder: str) -> ConfigDict:
    full = forecast_eth_ucy.get_config("zara1", folder)
    data = dict(full.evaluations.validation.data)
    return _short(full, dict(data=data, batch_size=9), {"task.width": 32, "train.global_batch_size": 4})


def _digits(folder: str) -> ConfigDict:
    full = digits.get_config()
    data = dict(full.evaluations.heldout.data)
    return _short(full, dict(data=data), {"task.width": 16, "train.global_batch_size": 32})


TASKS: Mapping[str, LabTask] = {
    "cnn": LabTask("Fashion-MNIST CNN", _cnn, 2800, "loss", "accuracy", "91.3 % test accuracy, 10 epochs, width 32"),
    "vit": LabTask(
        "Fashion-MNIST ViT", _vit, 1500, "loss", "accuracy", "88.4 % test accuracy, 10 epochs, width 64, patches of 4"
    ),
    "lm": LabTask(
        "language (lm_stdlib)", _language, 1000, "loss", "", "1.0204 nats per byte, 3,000 steps, width 192, length 256"
    ),
    "forecast": LabTask(
        "forecasting (ETH/UCY, zara1)",
        _forecasting,
        1400,
        "best/min_ade",
        "best/min_fde",
        "minADE/minFDE 0.17/0.31 m on the test split, 25 epochs, width 64",
    ),
}
"""Name -> task."""
TINY: Mapping[str, LabTask] = {
    "digits": LabTask("digits", _digits, 12, "loss", "accuracy", "for the tests of the laboratory")
}
"""Tasks that try the programs."""


def task_of(name: str) -> LabTask:
    """Returns a task. Raises KeyError."""
    return TASKS[name] if name in TASKS else TINY[name]


def config_of(run: Run, spec: OptimizerSpec, folder: str) -> ConfigDict:
    """Returns the config of a run.

    Args:
        run: the run.
        spec: its optimizer.
        folder: of the recordings of ETH/UCY.
    """
    config = task_of(run.task).make(folder)
    settings: dict[str, Any] = dict(run.settings)
    section: dict[str, Any] = {"target": spec.target, **spec.arguments}
    section["schedule"] = settings.pop("schedule", spec.schedule)
    section["learning_rate"] = rate = settings.pop("learning_rate")
    section["warmup"] = f"{round(settings.pop('warmup') * run.steps)} steps"
    if spec.adam_ratio is not None:
        section["adam_learning_rate"] = spec.adam_ratio * rate
    if "weight_decay" in settings:
        section["weight_decay"] = settings.pop("weight_decay")
    if "decay" in settings:
        section["schedule_arguments"] = {"decay": settings.pop("decay")}
    if "clip_norm" in settings:
        section["clip_norm"] = settings.pop("clip_norm") or None
    config.optimizer = section
    widths.apply(config, settings)
    train = {"batch": "global_batch_size", "accumulate": "accumulate", "precision": "precision", "ema": "ema_decay"}
    for name, value in settings.items():
        config.train[train[name]] = None if value == 0 else value
    config.train.total, config.train.seed = f"{run.steps} steps", run.seed
    return config


def _short(full: ConfigDict, evaluation: Mapping[str, object], changes: Mapping[str, object]) -> ConfigDict:
    """Returns a config with one evaluation, and without hooks, checkpoints by metric and averages."""
    full.evaluations = {VALIDATION: dict(evaluation)}
    full.hooks, full.tiny = {}, {}
    full.checkpoint.best = None
    full.train.ema_decay = None
    full.mesh.cpu_devices = None  # that of JAX: one
    full.update_from_flattened_dict(dict(changes))
    return full
