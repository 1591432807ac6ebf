"""Generator of `fixtures/run_format_2/`: two small interrupted runs, and the expected results of their resumes.

    python -m tests.run_format_2 OUT

The run `paths` names all of its code by dotted path, the run `objects` was given Python objects. Run it with the
release whose format must stay readable. It uses the public API only, so later releases run the same code.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import engine
from engine import ConvoyError, Loss, Mean, metrics
from engine.config import defaults
from tests import predicting, run_format, zoo

TOTAL = 12
CLASSES = ("car", "bicycle")
SHARDS, LINES, RECORDS = 3, 40, 29
LOGGED = ("step", "loss", "boxes", "accuracy", "grad_norm", "learning_rate", "skipped")


class Lines(engine.readers.JsonLines):
    """The training stream. Collects the shard and the position of each opening."""

    opened: ClassVar[list[Any]] = []

    def open(self, shard, position):
        self.opened.append([shard, position])
        return super().open(shard, position)


class Detector(nnx.Module):
    """Finds two boxes and their classes; `average` is a moving average of `scores`."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.trunk = nnx.Linear(6, width, rngs=rngs)
        self.boxes = nnx.Linear(width, 4, rngs=rngs)
        self.scores = nnx.Linear(width, 4, rngs=rngs)
        self.average = nnx.Linear(width, 4, rngs=rngs)

    def __call__(self, x):
        """Returns boxes `[batch, 2, 2]`, logits of the classes `[batch, 2, 2]` and averaged logits, likewise."""
        x = nnx.relu(self.trunk(x))
        return [head(x).reshape(-1, 2, 2) for head in (self.boxes, self.scores, self.average)]


@dataclasses.dataclass
class Detect(engine.Task):
    """Each loss trains the group of its name in `optimizer.groups`."""

    width: int = 8

    def build(self, rngs):
        return Detector(self.width, rngs)

    def loss(self, model, batch, rng):
        boxes, logits, _ = model(batch["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        confusion = metrics.ConfusionMatrix.of(logits.argmax(-1), batch["labels"], CLASSES)
        labels, size = Loss.of(losses, metrics={"confusion": confusion}), Loss.of(jnp.square(logits))
        return {"boxes": Loss.of(self.errors(boxes, batch)), "scores": Loss.sum(labels=labels, size=0.1 * size)}

    def errors(self, boxes, batch):
        return jnp.square(boxes - batch["boxes"]).sum(-1)

    def after_step(self, model, context):
        scores, average = (nnx.state(part, nnx.Param) for part in (model.scores, model.average))
        nnx.update(model.average, optax.incremental_update(scores, average, 0.25))

    def evaluate(self, model, batch):
        boxes, logits, averaged = model(batch["x"])
        scores, labels = jax.nn.softmax(logits), batch["labels"]
        found = boxes, scores.max(-1), logits.argmax(-1)
        errors = self.errors(boxes, batch)
        return {
            "ap": metrics.AveragePrecision.of(*found, batch["boxes"], labels, classes=CLASSES, thresholds=(1.0, 2.0)),
            "curve": metrics.PrecisionRecall.of(scores[..., 1], labels == 1),
            "averaged": metrics.Roc.of(averaged[..., 1] - averaged[..., 0], labels == 1),
            "errors": metrics.Quantiles.of(errors, q=(0.5, 0.9)),
            "error": Mean.of(errors),
        }

    def predict(self, model, batch):
        boxes, logits, _ = model(batch["x"])
        return {"boxes": boxes, "classes": {"scores": jax.nn.softmax(logits), "best": logits.argmax(-1)}}


def half(example):
    """Returns whether an example is in the first or in the second half, by its text."""
    return {"first": example["id"] < "scene-15", "second": example["id"] >= "scene-15"}


def right(example, start):
    """Returns whether the first box is on the right of `start`."""
    return example["boxes"][0, 0] > start


def detections(n: int, seed: int) -> dict[str, np.ndarray]:
    """Returns `x` `[n, 6]`, which holds `boxes` `[n, 2, 2]` with noise and the sign of `labels` `[n, 2]`, and `id`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).round(3).astype(np.float32)
    boxes = (x[:, :4] + 0.3 * rng.normal(size=(n, 4))).round(3).astype(np.float32)
    names = np.array([f"scene-{i:02}" for i in range(n)])
    return {"x": x, "boxes": boxes.reshape(n, 2, 2), "labels": (x[:, 4:] > 0).astype(np.int32), "id": names}


def write_data(folder: Path) -> None:
    """Writes the shards of the stream and the records."""
    folder.mkdir()
    for shard in range(SHARDS):
        columns = {name: array.tolist() for name, array in detections(LINES, seed=shard).items()}
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        (folder / f"lines-{shard}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    engine.write_dataset(engine.ArraySource(detections(RECORDS, seed=9)), folder / "records.arrayrecord")


def base(name: str) -> Any:
    """Returns what the configs of both runs have in common."""
    c = defaults()
    c.name = name
    c.train.total = f"{TOTAL} steps"
    c.train.global_batch_size = 16
    c.optimizer.learning_rate = 0.01
    c.checkpoint.every = "5 steps"
    c.checkpoint.keep_latest = 1
    c.log.every = "4 steps"
    c.log.examples = True
    c.log.tensorboard = False
    c.log.progress = "none"
    c.cache.compiled = False
    return c


def paths_config() -> Any:
    """Returns a config of several losses and optimizers on a stream, and of evaluations with collected metrics.

    The sources have their full dotted paths, as configs of users may have them.
    """
    records = dict(target="engine.data.array_record.ArrayRecordSource", pattern="data/records.arrayrecord")
    lines = dict(target="engine.readers.json_lines.JsonLines", pattern="data/lines-0.jsonl.gz")
    c = base("paths")
    c.task = dict(target="tests.run_format_2.Detect", width=6)
    c.data = dict(target="tests.run_format_2.Lines", pattern="data/lines-*.jsonl.gz", shuffle_window=18)
    c.train.ema_decay = 0.9
    c.optimizer.trainable = "^(trunk|boxes|scores)/"
    c.optimizer.weight_decay = 0.01
    c.optimizer.groups.boxes = dict(match="^(trunk|boxes)/", learning_rate_scale=2.0)
    c.optimizer.groups.scores = dict(
        match="^scores/",
        target="optax.sgd",
        momentum=0.9,
        learning_rate=0.1,
        schedule="warmup_stable_decay",
        schedule_arguments=dict(decay="4 steps"),
        warmup="2 steps",
        clip_norm=0.5,
        every=2,
    )
    c.evaluations.records = dict(
        data=records,
        every="3 steps",
        slices=dict(
            half=dict(target="tests.run_format_2.half"), right=dict(target="tests.run_format_2.right", start=0.5)
        ),
        score="error",
        worst=3,
    )
    mixture = dict(sources=dict(records=records, lines=lines), weights=dict(records=1, lines=2))
    c.evaluations.mixed = dict(data=dict(target="engine.data.sampling.mixture.Mixture", **mixture), every="6 steps")
    c.checkpoint.best = "records/ap"
    c.hooks.stop = dict(target="tests.run_format.Stop", every="7 steps")
    return c


def objects_config() -> Any:
    """Returns a config whose Task, data and hook are objects."""
    c = base("objects")
    c.train.accumulate = 2
    c.resilience.divergence = "skip"
    c.evaluations.heldout = dict(every="3 steps")
    c.checkpoint.best = "heldout/accuracy"
    c.stop.metric = "heldout/accuracy"
    c.stop.patience = 50
    c.hooks.stop = dict(every="7 steps")
    return c


def objects() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Returns the arguments of `engine.train`, `engine.evaluate` and `engine.export` that hold the objects."""
    task = {"task": predicting.Predict(width=8)}
    evaluated = {**task, "evaluation_data": {"heldout": zoo.source(37, seed=9)}}
    return {**evaluated, "data": zoo.source(), "hooks": {"stop": run_format.Stop()}}, evaluated, task


RUNS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "paths": (paths_config, {"evaluation": "records"}),
    "objects": (objects_config, {"data": zoo.source(21, seed=5)}),
}
"""Name of a run -> its config, and what it predicts."""


def given(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Returns the objects of a run, as `objects` does."""
    return objects() if name == "objects" else ({}, {}, {})


def plain(value: Any) -> Any:
    """Returns a result or a column as JSON."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def rows(run: Path) -> list[dict[str, float]]:
    """Returns the numbers of training and evaluations in metrics.jsonl, without times, speeds and memory."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    chosen = [{k: x for k, x in line.items() if k in LOGGED or "/" in k} for line in lines]
    return [{k: x for k, x in line.items() if isinstance(x, int | float)} for line in chosen if len(line) > 1]


def ledger(run: Path) -> dict[str, list[int]]:
    """Returns step -> the examples that it used, as the last attempt has written them."""
    lines = [json.loads(line) for file in run.glob("examples/*.jsonl") for line in file.read_text().splitlines()]
    return {str(line["step"]): line["examples"] for line in sorted(lines, key=lambda line: line["attempt"])}


def facts(name: str, run: Path) -> dict[str, Any]:
    """Returns digests, files, evaluation results, predictions and exported weights of the newest checkpoint."""
    _, evaluated, task = given(name)
    weights = run / "weights.safetensors"
    names = engine.export(run, weights, step="latest", **task)
    found = engine.checkpoints(run)
    step = run / "checkpoints" / str(found[-1].step)
    return {
        "step": found[-1].step,
        "results": {str(info.step): dict(info.results) for info in found},
        "digests": json.loads((step / "manifest.json").read_text())["arrays"],
        "position": json.loads((step / "position/position.json").read_text()),
        "evaluation": plain(engine.evaluate(run, step="latest", **evaluated)),
        "predictions": plain(engine.predict(run, step="latest", **RUNS[name][1], **task)),
        "names": names,
        "export_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }


def continued(folder: Path) -> dict[str, Any]:
    """Returns the facts of both runs before and after they are resumed in place; `folder` also holds their data."""
    found: dict[str, Any] = {"machine": run_format.machine()}
    with contextlib.chdir(folder):  # the config names its files by relative paths
        for name in RUNS:
            run = Path(name)
            stopped = facts(name, run)
            Lines.opened.clear()
            engine.train(str(run), workdir=run, **given(name)[0])
            finished = {**facts(name, run), "rows": rows(run), "ledger": ledger(run), "opened": list(Lines.opened)}
            found[name] = {"stopped": stopped, "finished": finished}
    return found


def make(out: Path) -> None:
    """Writes the runs, as if another machine had left them, and the expected results."""
    write_data(out / "data")
    for name, (config, _) in RUNS.items():
        with contextlib.chdir(out), contextlib.suppress(ConvoyError):  # the run reports that it was stopped
            engine.train(config(), workdir=name, **given(name)[0])
        leave(out / name)
    copy = out / "copy"
    shutil.copytree(out, copy, ignore=shutil.ignore_patterns("copy"))
    expected = continued(copy)
    (out / "expected.json").write_text(json.dumps(expected, indent=0) + "\n")
    for name in RUNS:
        shutil.copyfile(copy / name / "weights.safetensors", out / f"{name}.safetensors")
    shutil.rmtree(copy)


def leave(run: Path) -> None:
    """Replaces what identifies this machine in the files of a run."""
    changes = {
        "lease/1.json": {"host": "elsewhere", "machine": "", "boot": "", "folder": "/elsewhere", "identity": ""},
        "status.json": {"host": "elsewhere"},
        "code.json": {"folders": ["/elsewhere"]},
    }
    for name, values in changes.items():
        file = run / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}, indent=1))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
