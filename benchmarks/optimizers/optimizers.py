"""The optimizers of the laboratory: target, fixed arguments, and what is usual for each.

The arguments are the usual ones of the papers. Where one depends on the length of a run or the size of a model, the
comment states the change.
"""

import dataclasses
from collections.abc import Mapping

from benchmarks.optimizers.rows import Value

FULL = ("adamw", "muon", "soap", "lion", "adafactor", "schedule_free_adamw")
"""Optimizers that are compared on all tasks; the others on two of them."""


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer and its space.

    Attributes:
        title: name for people.
        target: `optimizer.target` of a config.
        rate: the usual peak of the learning rate, the middle of the tuned range.
        weight_decay: smallest and largest weight decay, in the convention of the target; None: it takes none.
        arguments: other arguments, which are not tuned.
        schedule: `optimizer.schedule` of a config.
        adam_ratio: `adam_learning_rate` of Muon over the learning rate; None: the target takes none.
        sam: radius of sharpness-aware minimization, which wraps the task; None without.
    """

    title: str
    target: str
    rate: float
    weight_decay: tuple[float, float] | None = (0.01, 0.3)
    arguments: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    schedule: str = "cosine"
    adam_ratio: float | None = None
    sam: float | None = None


_ADAM = {"b1": 0.9, "b2": 0.999}

OPTIMIZERS: Mapping[str, OptimizerSpec] = {
    "adamw": OptimizerSpec("AdamW", "optax.adamw", 2e-3, arguments=_ADAM),  # Loshchilov & Hutter 2019
    # Jordan 2024: 0.02 for matrices, and about a tenth of it for Adam.
    "muon": OptimizerSpec("Muon", "engine.optimizers.muon", 2e-2, arguments={"momentum": 0.95}, adam_ratio=0.1),
    "soap": OptimizerSpec(  # Vyas et al. 2024, arXiv:2409.11321
        "SOAP", "engine.optimizers.soap", 3e-3, arguments={"b1": 0.95, "b2": 0.95, "frequency": 10}
    ),
    # Chen et al. 2023, arXiv:2302.06675: a learning rate 3 to 10 times smaller, and a weight decay as much larger.
    "lion": OptimizerSpec("Lion", "optax.lion", 3e-4, (0.1, 3.0), arguments={"b1": 0.9, "b2": 0.99}),
    # Shazeer & Stern 2018, arXiv:1804.04235: a relative step of 0.01. The models here are narrower than the default of
    # 128, below which nothing is factored.
    "adafactor": OptimizerSpec("Adafactor", "engine.optimizers.adafactor", 2e-2, arguments={"smallest": 16}),
    "schedule_free_adamw": OptimizerSpec(  # Defazio et al. 2024, arXiv:2405.15682: up to ten times the rate of AdamW
        "schedule-free AdamW",
        "engine.optimizers.schedule_free_adamw",
        5e-3,
        arguments={"b1": 0.9, "b2": 0.999},
        schedule="constant",
    ),
    "nadamw": OptimizerSpec("NAdamW", "optax.nadamw", 2e-3, arguments=_ADAM),  # Dozat 2016
    "lamb": OptimizerSpec("LAMB", "engine.optimizers.lamb", 1e-2, arguments=_ADAM),  # You et al. 2020, arXiv:1904.00962
    # Pagliardini et al. 2024, arXiv:2409.03137. The usual b3 = 0.9999 averages over ten times the steps of these runs.
    "ademamix": OptimizerSpec(
        "AdEMAMix", "optax.contrib.ademamix", 1e-3, arguments={**_ADAM, "b3": 0.999, "alpha": 5.0}
    ),
    "schedule_free_sgd": OptimizerSpec(
        "schedule-free SGD",
        "engine.optimizers.schedule_free_sgd",
        1.0,
        (1e-5, 1e-3),
        arguments={"b1": 0.9},
        schedule="constant",
    ),
    "sgd": OptimizerSpec("SGD with momentum", "optax.sgd", 0.1, None, arguments={"momentum": 0.9, "nesterov": True}),
    "sam": OptimizerSpec("SAM with AdamW", "optax.adamw", 2e-3, arguments=_ADAM, sam=0.05),  # arXiv:2010.01412
    "mars": OptimizerSpec("MARS", "engine.optimizers.mars", 3e-3),  # Yuan et al. 2024, arXiv:2411.10438
    "adam_mini": OptimizerSpec("Adam-mini", "engine.optimizers.adam_mini", 2e-3),  # Zhang et al. 2024, arXiv:2406.16793
}
"""Name -> optimizer."""
