"""What `bundles.py` exports: each workload as a config, with as little training as a comparison needs."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Workload:
    """One row of the table.

    Attributes:
        title: the kind of model.
        config: its config.
        steps: steps of training, after which int8 has something to lose.
        evaluation: whose data gives samples, calibrates int8 and measures its quality.
        metric: the quality, of this evaluation.
        examples: of the evaluation.
        overrides: further changes of the config.
    """

    title: str
    config: str
    steps: int
    evaluation: str
    metric: str
    examples: int
    overrides: Sequence[str] = ()

    def changes(self, steps: int | None) -> list[str]:
        """Returns the overrides of the config for a run of so many steps, None for `steps`."""
        data = f"evaluations.{self.evaluation}.data"
        return [
            f"train.total={self.steps if steps is None else steps} steps",
            f"{data}.limit={self.examples}",
            "log.progress=none",
            "log.tensorboard=False",
            *self.overrides,
        ]


WORKLOADS = {
    "mlp": Workload("MLP, digits", "configs.digits", 300, "heldout", "accuracy", 360),
    "cnn": Workload(
        "CNN, Fashion-MNIST", "configs.fashion_mnist", 150, "test", "accuracy", 2000, ("data.limit=20000",)
    ),
    "vit": Workload(
        "ViT, Fashion-MNIST", "configs.vit_fashion", 150, "test", "accuracy", 1000,
        ("data.limit=20000", "mesh.cpu_devices=None"),
    ),
    "decoder": Workload(
        "decoder, bytes of Python", "configs.lm_stdlib", 100, "validation", "loss", 64,
        ("mesh.cpu_devices=None", "hooks={}"),
    ),
    "forecasting": Workload(
        "forecasting, Argoverse 2 (miniature)", "configs.argoverse2_motion", 100, "val", "focal/brier_min_fde", 40
    ),
    "lidar": Workload("lidar, pillars", "configs.lidar_sim", 100, "validation", "loss", 20),
    "cameras": Workload("six cameras, lift and splat", "configs.bev_sim", 100, "validation", "loss", 20),
}  # fmt: skip
