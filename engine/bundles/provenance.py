"""Where a bundle is from: the run, its code and data, and the results of its evaluations."""

import importlib.metadata
from typing import Any

from engine import __version__
from engine.api.saved_run import LoadedRun, SavedRun
from engine.checkpoint.manifest import manifest_hash
from engine.checkpoint.policy import read_results
from engine.data import dataset_summary
from engine.run import code

PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def provenance(saved: SavedRun, found: LoadedRun) -> dict[str, Any]:
    """Returns what the manifest says about the origin of a bundle; without times and without paths of this machine."""
    directory, step = saved.directory, found.step
    stored = code.read(directory.code)
    return {
        "name": directory.path.absolute().name,
        "run": {
            "name": found.config.name,
            "step": step,
            "weights": "trained" if found.config.train.ema_decay is None else "averaged",
            "precision": found.config.train.precision,
            "checkpoint": manifest_hash(directory.checkpoints / str(step)),
            "task": type(found.task).__name__,
            "commit": stored.commit,
            "uncommitted_changes": stored.dirty,
            "trained_with": dict(stored.packages),
            "config": directory.read_config_text(),
        },
        "data": dataset_summary.read(directory.data),
        "metrics": read_results(directory.checkpoints).get(step, {}),
        "versions": {"convoy": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}},
    }
