"""Measures the model of a run without `jax.jit`, as a comparison for the programs of a bundle of this run.

`bench.py` starts it as a process: python -m engine.bundles.eager RUN ENTRY eager BUNDLE. Each operation of the model is
a program of its own, which is compiled at its first call and started from Python.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from engine.api.saved_run import SavedRun, load
from engine.base.errors import ConfigError, ConvoyError
from engine.bundles.exported import entries_of
from engine.bundles.forward import STATE, key, outputs_of, values_of
from engine.bundles.samples import example_of, first_state, sample_data
from engine.checkpoint.manifest import manifest_hash
from engine.parallel.layout import with_layout
from engine.training.arrays import cast

EAGER = "eager"

type Call = Callable[[Mapping[str, Any]], dict[str, np.ndarray]]


def eager_function(run: str | Path, manifest: Mapping[str, Any], name: str, rows: int) -> Call:
    """Returns an entry point as a function `inputs -> outputs`, which calls the model operation by operation.

    Args:
        run: the run directory.
        manifest: of the bundle.
        name: of the entry point.
        rows: rows of each call.

    Raises:
        ConfigError: the bundle is of another run, or of a checkpoint that the run has no longer.
    """
    saved, step = SavedRun(run), manifest["run"]["step"]
    folder = saved.directory.checkpoints / str(step)
    if not folder.is_dir() or manifest_hash(folder) != manifest["run"]["checkpoint"]:
        raise ConfigError(f"--eager={run}: has not the checkpoint of the bundle, which is step {step} of another run.")
    found = load(run, step=step)
    data = sample_data(found, None)
    entry = next(entry for entry in entries_of(found.task) if entry.name == name)
    program, dtype, values = data.program, data.program.compute_dtype, values_of(found.model)
    state_names = tuple(manifest["entries"][name]["state"])
    state = {path: values[path] for path in program.model.model_state}
    for path, x in first_state(data, state_names).items():
        state[path.removeprefix(STATE)] = np.repeat(x, rows, 0)
    module = program.model.module(cast({path: values[path] for path in program.model.params}, dtype), state, None)
    module.eval()
    leaves, structure = jax.tree.flatten_with_path(example_of(entry, data))
    unread = {key(path): np.zeros((rows, *x.shape), x.dtype) for path, x in leaves}

    def predict(inputs: Mapping[str, Any]) -> Any:
        arrays = jax.device_put([inputs.get(key(path), unread[key(path)]) for path, _ in leaves])
        examples = cast(jax.tree.unflatten(structure, arrays), dtype, data.task.full_precision)
        return getattr(data.task, name)(module, examples)

    predict = with_layout(program.layout, predict)

    def call(inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        outputs = outputs_of(jax.device_get(predict(inputs)), name)
        return outputs | {path: inputs[path] for path in state_names}  # the model itself keeps its state

    return call


def main(arguments: list[str]) -> int:
    """Measures as measure.py does, and returns the exit code."""
    run, *rest = arguments
    sys.path.insert(0, str(Path(__file__).parent / "standalone"))
    check, measure = map(importlib.import_module, ("check", "measure"))
    args = measure.parse(rest, programs=(EAGER,))

    def loaded(bundle: Any, entry: Any, calls: Any, cores: int) -> tuple[Call, str, Callable[[], dict[str, Any]]]:
        rows = check.rows_of(entry)
        rows = rows if isinstance(rows, int) else args.batch or 1
        try:
            return eager_function(run, bundle.manifest, args.entry, rows), f"jax {jax.__version__}", dict
        except ConvoyError as error:
            raise check.BundleError(str(error)) from error

    return measure.run(args, "jax", loaded)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
