"""The programs of small variants of the configs, as StableHLO: the train step and the evaluation step of each row.

    python -m tests.configs.step_digests OUT         writes the texts to a folder, to compare those of two commits
    python -m tests.configs.step_digests --update    writes the golden file

`step_digests_test.py` compares the digests of the texts with the golden file. Nothing is compiled.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from engine import ArraySource
from engine.api import prepared
from engine.compile.evaluation_step import evaluation_step
from engine.config import load

GOLDEN = Path(__file__).parent / "golden/step_digests.json"
DEVICES = 8
COMMON = ("evaluations={}", "hooks={}", "checkpoint.best=None", "cache.compiled=False", "train.total=20 steps")
PHOTOGRAPHS = (
    "data={'target': 'tests.configs.step_digests.photographs'}",
    "data.limit=64",
    "train.global_batch_size=16",
    "task.width=8",
)
DOCUMENTS = (
    "data={'target': 'engine.Packed', 'documents': {'target': 'tests.configs.step_digests.Documents'}, 'length': 32}",
    "train.global_batch_size=16",
    *(f"task.{name}={size}" for name, size in dict(width=32, hidden=64, depth=4, heads=4).items()),
)
SCENES = ("train.global_batch_size=16", "task.width=8", "task.depth=1", "data.source.count=64", "data.source.most=40")


def on(**axes: int) -> list[str]:
    """Returns the overrides for a mesh."""
    return [f"mesh.{axis.replace('__', '.')}={size}" for axis, size in axes.items()]


DIGITS = ("train.global_batch_size=16", "task.width=16", "data.limit=64")
ROWS: Mapping[str, tuple[str, list[str]]] = {
    "mlp, data": ("digits", [*DIGITS, *on(data=8)]),
    "mlp, ZeRO-1, EMA, bfloat16": (
        "digits",
        [*DIGITS, *on(data=8), "sharding.zero1=True", "train.ema_decay=0.9", "train.precision=bfloat16"],
    ),
    "mlp, fsdp, 2 microbatches, 2 steps": (
        "digits",
        [*DIGITS, *on(fsdp=8), "train.accumulate=2", "train.steps_per_dispatch=2"],
    ),
    "mlp, skipped updates": (
        "digits",
        [*DIGITS, "resilience.divergence=skip", "resilience.spike=5", "data.on_error=skip"],
    ),
    "cnn, data x fsdp": ("fashion_mnist", [*PHOTOGRAPHS, *on(data=2, fsdp=4)]),
    "cnn, 2 microbatches, 2 steps": (
        "fashion_mnist",
        [
            *PHOTOGRAPHS,
            "train.accumulate=2",
            "train.approximate_accumulation=True",
            "train.steps_per_dispatch=2",
        ],
    ),
    "detection": ("detection", ["train.global_batch_size=8", "task.width=4", "data.count=16"]),
    "vit, tensor, dropout, bfloat16": (
        "vit_fashion",
        [*PHOTOGRAPHS, *on(data=4, tensor=2), "task.depth=2", "train.precision=bfloat16"],
    ),
    "decoder, fsdp, remat": ("lm_stdlib", [*DOCUMENTS, *on(fsdp=8), "train.remat=full"]),
    "decoder, slices x fsdp, remat of products": (
        "lm_stdlib",
        [*DOCUMENTS, *on(dcn__data=2, fsdp=4), "train.remat=dots", "task.tied=True"],
    ),
    "decoder, tensor, float8": (
        "lm_stdlib",
        [*DOCUMENTS, *on(fsdp=4, tensor=2), "train.precision=float8", "train.accumulate=2"],
    ),
    "decoder, int8, saved attention": (
        "lm_stdlib",
        [*DOCUMENTS, *on(data=8), "train.precision=int8", "train.remat=save:attention", "task.kv_heads=2"],
    ),
    "decoder, gpipe": ("lm_stdlib", [*DOCUMENTS, *on(pipeline=4, data=2), "task.dropout=0.1"]),
    "decoder, circular pipeline": (
        "lm_stdlib",
        [*DOCUMENTS, *on(pipeline=2, fsdp=4), "sharding.repeats=2", "sharding.microbatches=2"],
    ),
    "decoder, 1f1b, context": (
        "lm_stdlib",
        [*DOCUMENTS, *on(pipeline=2, data=2, context=2), "sharding.schedule=1f1b"],
    ),
    "decoder, ring": ("lm_stdlib", [*DOCUMENTS, *on(data=2, context=4)]),
    "decoder, all-to-all": ("lm_stdlib", [*DOCUMENTS, *on(data=2, context=4), "sharding.context=all-to-all"]),
    "decoder, Muon": (
        "lm_stdlib",
        [*DOCUMENTS, *on(fsdp=8), "optimizer={'target': 'optax.contrib.muon', 'weight_decay': 0.1}"],
    ),
    "decoder, frozen stack": (
        "lm_stdlib",
        [*DOCUMENTS, *on(fsdp=8), "optimizer.trainable=^(embed|head|norm)/", "train.ema_decay=0.9"],
    ),
    "experts": ("moe_stdlib", [*DOCUMENTS, *on(expert=4, data=2), "task.experts=4"]),
    "experts, dropless, tensor": (
        "moe_stdlib",
        [*DOCUMENTS, *on(expert=2, fsdp=2, tensor=2), "task.experts=4", "task.capacity_factor=None"],
    ),
    "experts, 1f1b": (
        "moe_stdlib",
        [*DOCUMENTS, *on(expert=2, pipeline=2, data=2), "task.experts=4", "sharding.schedule=1f1b"],
    ),
    "gan": ("gan", [*DIGITS, "train.ema_decay=0.9", "optimizer.groups.critic.every=2"]),
    "mean teacher": ("mean_teacher", [*DIGITS, "data.labels=None"]),
    "actor-critic": ("actor_critic", ["train.global_batch_size=16", "task.length=10"]),
    "bucketed scenes": ("scenes", [*SCENES, "data.lengths=[16, 40]"]),
}
"""Row -> name of a config, and overrides. All have tiny sizes."""
WITHOUT_EVALUATION = {"gan"}  # its loss needs random keys, and its Task has no evaluate

_SYMBOL = re.compile(r"@(?:[\w$.-]+|\"[^\"]*\")")
_PRIVATE = re.compile(rf"func\.func private ({_SYMBOL.pattern})")
_MODULE = re.compile(rf"^module ({_SYMBOL.pattern})", re.MULTILINE)
_RESULT_INFO = re.compile(r"(?:, )?jax\.result_info = \"(?:[^\"\\]|\\.)*\"")


class Documents:
    """Documents of 3 to 60 bytes."""

    def __len__(self) -> int:
        return 128

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"tokens": np.arange(3 + index * 7 % 58, dtype=np.uint8)}


def photographs() -> ArraySource:
    """Returns black images with label 0, of the shapes of Fashion-MNIST."""
    return ArraySource({"image": np.zeros((64, 28, 28), np.uint8), "label": np.zeros(64, np.int32)})


class _Uncompiled:
    """Takes the place of the compiler of an evaluation step, and keeps the program that it receives."""

    def compile(self, name: str, lowered: jax.stages.Lowered, *rest: Any) -> None:
        self.text = lowered.as_text()

    def say(self, text: str) -> None: ...


def texts(row: str) -> Iterator[tuple[str, str]]:
    """Yields the name and the normalized text of each program of a row."""
    name, overrides = ROWS[row]
    config = load(f"configs.{name}", [*COMMON, f"mesh.cpu_devices={DEVICES}", *overrides])
    program, _ = prepared.program(config)
    yield "train", normalized(program.trace(config.train.steps_per_dispatch).lower().as_text())
    if row in WITHOUT_EVALUATION:
        return
    uncompiled: Any = _Uncompiled()
    evaluation, batch = program.evaluation, program.abstract_batch
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch.examples)
    step, _, _ = evaluation_step(evaluation, example, program.batch_size)
    step.compile("evaluation", evaluation.abstract_weights(averaged=False), batch, uncompiled)
    yield "evaluation", normalized(uncompiled.text)


def normalized(text: str) -> str:
    """Returns StableHLO without names that stem from Python: those of functions, and of the fields of results."""
    text = _RESULT_INFO.sub("", text)
    names = {name: f"@f{i}" for i, name in enumerate(_PRIVATE.findall(text))}
    names |= dict.fromkeys(_MODULE.findall(text), "@module")
    return _SYMBOL.sub(lambda found: names.get(found[0], found[0]), text)


def digest(text: str) -> str:
    """Returns the start of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that write parts of the programs."""
    return {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")}


def update() -> None:
    """Writes the digests of all rows to the golden file."""
    rows = {row: {name: digest(text) for name, text in texts(row)} for row in ROWS}
    GOLDEN.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


def write(folder: Path) -> None:
    """Writes ROW.PROGRAM.mlir of all rows to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in ROWS:
        for name, text in texts(row):
            (folder / f"{file_name(row)}.{name}.mlir").write_text(text, encoding="utf-8")


def file_name(row: str) -> str:
    """Returns the name of a row with words joined by underscores."""
    return re.sub(r"[^\w-]+", "_", row)


if __name__ == "__main__":
    [argument] = sys.argv[1:]
    if argument == "--update":
        update()
    else:
        write(Path(argument))
