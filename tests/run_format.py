"""Config and generator of `fixtures/run_format_1/`: a small interrupted run, and the expected results of its resume.

    python -m tests.run_format OUT

Run it with the release whose format must stay readable. `expected.json` holds the results after the resume.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import engine
from engine.api import train as entry
from engine.base.errors import ConvoyError
from engine.compile import cache
from engine.config import defaults

STOP, TOTAL = 7, 12


class Stop:
    """Hook that stops the first attempt, like a preemption."""

    def run(self, trainer: Any, state: Any, step: int) -> None:
        """Sends SIGTERM to this process."""
        if trainer.directory.attempt == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def config() -> Any:
    """A run with every part of the state: batch statistics, dropout, averaged weights, moments and a loss window."""
    c = defaults()
    c.name = "run_format"
    c.task = dict(target="tests.zoo.Classify", model="cnn", width=4, dropout=0.2)
    c.data = dict(target="tests.zoo.source")
    c.train.total = f"{TOTAL} steps"
    c.train.global_batch_size = 16
    c.train.ema_decay = 0.9
    c.optimizer.learning_rate = 0.01
    c.optimizer.schedule = "constant"
    c.resilience.spike = 10.0
    c.evaluations.heldout = dict(data=dict(target="tests.zoo.source", n=37, seed=9), every="3 steps")
    c.checkpoint.every = "4 steps"
    c.checkpoint.best = "heldout/accuracy"
    c.hooks.stop = dict(target="tests.run_format.Stop", every=f"{STOP} steps")
    c.log.every = "4 steps"
    c.log.tensorboard = False
    c.log.progress = "none"
    c.cache.compiled = False
    return c


def machine() -> str:
    """Returns the kind of this machine and the release of jax: where both are the same, results are bitwise equal."""
    return cache.key()


def facts(run: Path) -> dict[str, Any]:
    """Returns digests, evaluation results and exported weights of the newest checkpoint of a run."""
    weights = run / "weights.safetensors"
    names = engine.export(run, weights, step="latest")
    step = engine.checkpoints(run)[-1].step
    manifest = json.loads((run / "checkpoints" / str(step) / "manifest.json").read_text())
    return {
        "step": step,
        "digests": manifest["arrays"],
        "evaluation": engine.evaluate(run, step="latest"),
        "names": names,
        "export_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }


def continued(run: Path) -> dict[str, Any]:
    """Returns the facts of a stopped run before and after it is resumed in place."""
    stopped = facts(run)
    summary = entry.train(str(run), workdir=run)
    numbers = {name: summary.metrics[name] for name in ("loss", "accuracy", "grad_norm", "skipped")}
    finished = {**facts(run), "metrics": numbers}
    return {"machine": cache.key(), "stopped": stopped, "finished": finished}


def make(out: Path) -> None:
    """Writes the run, as if another machine had left it, and the expected results."""
    run, copy = out / "run", out / "copy"
    try:
        entry.train(config(), workdir=run)
    except ConvoyError as stopped:
        print(stopped)
    lease = run / "lease/1.json"
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "host": "elsewhere", "machine": "", "boot": ""}))
    shutil.copytree(run, copy)
    (out / "expected.json").write_text(json.dumps(continued(copy), indent=1) + "\n")
    shutil.move(copy / "weights.safetensors", out / "finished.safetensors")
    shutil.rmtree(copy)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
