"""The rows of the accelerator benchmark: what each is called, what it shows, and which function measures it."""

from typing import NamedTuple

PACKAGE = "benchmarks.accelerator"


class RowSpec(NamedTuple):
    """A row: its function is called with a `context.Context` and the arguments."""

    description: str
    function: str  # module:name, in this package, so that listing the rows imports no jax
    arguments: tuple[str, ...] = ()


ROWS = {
    "attention": RowSpec("attention of every kind against float32 on the CPU", "attention:run"),
    "layers": RowSpec("loss, experts, recomputation and offload against float32 on the CPU", "layers:run"),
    "decoder-125m": RowSpec("training of a decoder with 135 million parameters", "training:run", ("decoder-125m",)),
    "decoder-350m": RowSpec("training of a decoder with 375 million parameters", "training:run", ("decoder-350m",)),
    "decoder-1b": RowSpec("training of a decoder with 1.16 billion parameters", "training:run", ("decoder-1b",)),
    "decoder-packed": RowSpec(
        "row decoder-125m with rows of packed documents", "training:run", ("decoder-125m", "packed", "no-torch")
    ),
    "vit": RowSpec("training of a vision transformer, ViT-S/16", "training:run", ("vit",)),
    "moe": RowSpec("training of a decoder with eight experts a layer", "training:run", ("moe", "no-torch")),
    "cnn": RowSpec("training of a small CNN with batch normalisation", "training:run", ("cnn",)),
    "dispatch": RowSpec("several steps in one dispatch, on a small model", "small_model:run"),
    "first-step": RowSpec("from the start of a process to its first step", "starting:run"),
    "save": RowSpec("how long a save delays training", "saving:run"),
    "data": RowSpec("waiting for images that are decoded from JPEG", "jpeg:run"),
    "fsdp": RowSpec(
        "training of a decoder split over all devices", "training:run", ("decoder-350m", "fsdp", "no-torch")
    ),
}
"""In the order in which they run."""
