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
from flax import nnx

from engine.api.saved_run import SavedRun, load
from engine.base.errors import ConfigError, ConvoyError
from engine.bundles.exported import entries_of
from engine.bundles.forward import SINGLE, STATE, key, name_of
from engine.bundles.samples import first_state, sample_data
from engine.checkpoint.manifest import manifest_hash
from engine.data.source import ArraySource, example_spec
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
    example = data.example
    if entry.inputs is not None:
        example = example_spec(ArraySource({k: np.asarray(x) for k, x in entry.inputs(data.task).items()}))
    program, dtype = data.program, data.program.compute_dtype
    values = {
        name_of(path): variable.get_value()
        for path, variable in nnx.to_flat_state(nnx.state(found.model, nnx.Not(nnx.RngState)))
    }
    state_names = tuple(manifest["entries"][name]["state"])
    state = {path: values[path] for path in program.model.model_state}
    for path, x in first_state(data, state_names).items():
        state[path.removeprefix(STATE)] = np.repeat(x, rows, 0)
    module = program.model.module(cast({path: values[path] for path in program.model.params}, dtype), state, None)
    module.eval()
    leaves, structure = jax.tree.flatten_with_path(example)
    unread = {key(path): np.zeros((rows, *x.shape), x.dtype) for path, x in leaves}

    def predict(inputs: Mapping[str, Any]) -> Any:
        arrays = jax.device_put([inputs.get(key(path), unread[key(path)]) for path, _ in leaves])
        examples = cast(jax.tree.unflatten(structure, arrays), dtype, data.task.full_precision)
        return getattr(data.task, name)(module, examples)

    predict = with_layout(program.layout, predict)

    def call(inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        outputs = jax.device_get(predict(inputs))
        found = {key(path) or SINGLE: x for path, x in jax.tree.leaves_with_path(outputs)}
        return found | {path: inputs[path] for path in state_names}  # the model itself keeps its state

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
