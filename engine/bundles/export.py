"""Exports a run as a bundle, which is written only if its programs compute what the engine does."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from jax.export import default_export_platform

from engine.api.lineage import record_export
from engine.api.saved_evaluations import log
from engine.api.saved_run import LoadedRun, SavedRun, load
from engine.base.errors import ConfigError, did_you_mean
from engine.bundles import bundle
from engine.bundles.entry_export import WEIGHTS, EntryExporter
from engine.bundles.exported import entries_of
from engine.bundles.manifest import FORMAT, MANIFEST, entry_json
from engine.bundles.onnx.convert import PRECISION, OnnxProgram, convert, find_python
from engine.bundles.options import ONNX, STABLEHLO, Options
from engine.bundles.program import check_writable
from engine.bundles.provenance import provenance
from engine.bundles.samples import sample_data
from engine.bundles.signing import sign
from engine.config.schema import Config
from engine.storage.mounts import local_path
from engine.training.task import Task


def export_bundle(
    run: str | Path,
    out: str | Path,
    *,
    step: int | str | None = None,
    task: Task | None = None,
    options: Options | None = None,
    on_message: Callable[[str], None] = log,
) -> bundle.Bundle:
    """Writes a trained model as a bundle: programs, weights, samples, and a manifest that says where they are from.

    The entry points are `Task.predict` and the methods marked with `engine.exported`. Nothing is written if a program
    differs from the engine. The same run gives the same bytes. `OUT.lineage.json` next to the bundle says from which
    checkpoint it is.

    Args:
        run: the run directory.
        out: the folder, or a zip file if it ends with ".zip", also the address of one. A bundle there is replaced.
        step: step of the checkpoint, "latest", or "best"; None as for `engine.load`.
        task: the Task, if the run was started with a Task object.
        options: what the bundle holds; None: a StableHLO program for any number of rows.
        on_message: called with sentences for the user.

    Raises:
        BundleError: a program computes something else than the engine.
        TaskError: an entry point cannot be exported.
        ConfigError: an option is not valid, or the bundle cannot be written.
    """
    path, options = local_path(out), options or Options()
    bundle.check_replaceable(path)
    _check_environment(options)
    saved = SavedRun(run)
    config = _config(saved, options, on_message)
    found = dataclasses.replace(load(run, step=saved.choose(step), task=task), config=config)
    exporters = _exporters(found, options, on_message)
    models: Sequence[OnnxProgram | None] = [None] * len(exporters)
    if ONNX in options.formats:
        models = convert(found, [one.method() for one in exporters], options.onnx_python)
    exported = [one.export(model) for one, model in zip(exporters, models, strict=True)]
    files = dict(bundle.standalone_files())
    for one in exported:
        files |= one.files
    if weights := {name: x for one in exported for name, x in one.weights.items()}:
        files[WEIGHTS] = bundle.save_arrays(weights)
    entries = {one.entry.name: entry_json(one.entry) for one in exported}
    manifest = {"format": FORMAT, "entries": entries, **provenance(saved, found)}
    if options.quantize is not None:
        manifest["quantization"] = {one.name: one.quantized.description for one in exporters if one.quantized}
    bundle.write(path, manifest, files, options.sign)
    averaged = found.config.train.ema_decay is not None
    record_export(path, saved, found.step, averaged, path / MANIFEST if path.is_dir() else None)
    return bundle.Bundle(path)


def _config(saved: SavedRun, options: Options, say: Callable[[str], None]) -> Config:
    """Returns the config of the run, with the changes of the options and in the precision of the programs."""
    config = saved.changed_config(options.overrides)
    if ONNX not in options.formats:
        return config
    find_python(options.onnx_python)  # a missing one is reported before anything is computed
    if config.train.precision == PRECISION:
        return config
    say(f"note: the programs compute in {PRECISION} instead of {config.train.precision}, as ONNX needs it")
    return saved.changed_config([*options.overrides, f"train.precision={PRECISION}"])


def _exporters(found: LoadedRun, options: Options, say: Callable[[str], None]) -> list[EntryExporter]:
    """Returns an exporter of each entry point; what is quantized is chosen for the first one."""
    data, exporters = sample_data(found, options.evaluation), list[EntryExporter]()
    if ONNX in options.formats and data.task is not found.task:
        raise ConfigError(
            f"--format=onnx: {data.where} adapts the Task, as engine.Joint does, which the converter cannot do in its "
            "environment. Use --format=stablehlo, or --evaluation=NAME with other data."
        )
    for entry in entries_of(found.task):
        like = next((one.quantized.plan for one in exporters if one.quantized is not None), None)
        exporters.append(EntryExporter(found, data, entry, options, say, like))
    inputs = {name for one in exporters for name in one.forward.inputs}
    for name in options.shapes:
        if name not in inputs:
            raise ConfigError(
                f"--shape={name}: no entry point reads such an input.{did_you_mean(name, inputs)} Inputs: "
                f"{', '.join(sorted(inputs))}."
            )
    return exporters


def _check_environment(options: Options) -> None:
    """Raises ConfigError for what would fail at the end: a missing package, a wrong key, another platform."""
    if options.sign is not None:
        sign(b"", options.sign)
    if STABLEHLO not in options.formats:
        return
    check_writable()
    if (here := default_export_platform()) not in options.platforms:
        raise ConfigError(
            f"--platforms={','.join(options.platforms)}: the programs are compared with the engine on this machine, "
            f"where JAX uses {here}. Add {here}, or set JAX_PLATFORMS."
        )
