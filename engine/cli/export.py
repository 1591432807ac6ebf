"""`convoy export`: writes the weights of a run, or a bundle that runs without the engine."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from engine.base.errors import CheckpointError, ConfigError
from engine.cli import bundle_flags, common
from engine.cluster.exit_status import ExitStatus

if TYPE_CHECKING:
    from flax import nnx

DESCRIPTION = """
Writes the weights of a checkpoint as safetensors, the averaged weights if there are
any. FILE.lineage.json says where they are from; FILE.MODEL_CARD.md is a model card.

  convoy export runs/digits --out=digits.safetensors      the names of this model
  convoy export runs/digits --format=hf --out=digits      a folder for another program

--format=hf writes the names and shapes that the `pretrained` tables of the model give,
of the whole model or of a --part, with adapters merged. In a folder, config.json is
written, too, if the Task has a method config_json.

  convoy export runs/digits --format=stablehlo --out=digits     a bundle for a vehicle

A bundle is a folder, or NAME.zip: programs, weights, samples, and bundle.json, which
says where they are from. It is written only if the programs compute what the engine
does. python digits/check.py checks it on any machine with jax or onnxruntime.
"""
FORMATS = ("safetensors", "hf")
CARD_FLAGS = ("intended_use", "limits", "group", "no_card")
OF_HF = ("part", "like")
SUFFIX = ".safetensors"
PATIENCE_S = 3.0  # intervals that take longer show their progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy export`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", help="run directory")
    parser.add_argument("--out", required=True, metavar="PATH", help="FILE.safetensors; a folder or NAME.zip")
    parser.add_argument(
        "--format", default=FORMATS[0], metavar="NAME", help="safetensors (default), hf, stablehlo, onnx"
    )
    parser.add_argument("--part", metavar="PATH", help="with --format=hf: part of the model, such as backbone")
    parser.add_argument(
        "--like", metavar="WEIGHTS", help="with --format=hf: weights of the other program, which must have these arrays"
    )
    add_flags(parser)
    bundle_flags.add_flags(parser)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that all exports have."""
    parser.add_argument("--step", help="of an export: a step, latest or best")
    card = parser.add_argument_group("model card of an export")
    card.add_argument("--intended-use", metavar="FILE", help="text of the team: for what the model may be used")
    card.add_argument("--limits", metavar="FILE", help="text of the team: what is known to be wrong with it")
    card.add_argument(
        "--group", metavar="TAG", help="intervals over groups of examples with the same value of this tag"
    )
    card.add_argument("--no-card", action="store_true", help="write no model card")


def check_flags(args: argparse.Namespace, is_export: bool = True) -> None:
    """Raises ConfigError for flags of a card without a card."""
    if flags := [flag for flag in CARD_FLAGS if getattr(args, flag)]:
        names = ", ".join(f"--{flag.replace('_', '-')}" for flag in flags)
        if not is_export or (args.no_card and len(flags) > 1):
            raise ConfigError(f"{names}: concern the model card of an export. Use convoy export, without --no-card.")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy export`."""
    formats = args.format.split(",")
    if set(formats) <= set(bundle_flags.FORMATS):
        check_flags(args, is_export=False)
        _refuse_flags(args)
        bundle_flags.write(args, formats, overrides)
        return ExitStatus.DONE
    if args.format not in FORMATS:
        allowed = ", ".join((*FORMATS, *bundle_flags.FORMATS))
        raise ConfigError(f"--format={args.format}: allowed are {allowed}, and stablehlo,onnx for both.")
    common.refuse_overrides(overrides, "export")
    check_flags(args)
    bundle_flags.refuse(args)
    out = Path(args.out)
    if args.format == "hf":
        write(args, out if out.suffix == SUFFIX else out / f"model{SUFFIX}", is_foreign=True)
        return ExitStatus.DONE
    _refuse_flags(args)
    write(args, out)
    return ExitStatus.DONE


def _refuse_flags(args: argparse.Namespace) -> None:
    if flags := [flag for flag in OF_HF if getattr(args, flag)]:
        raise ConfigError(f"--{flags[0]}: concerns --format=hf. Add it, or leave --{flags[0]} out.")


def write(args: argparse.Namespace, file: Path, is_foreign: bool = False) -> None:
    """Writes the weights of a run and their model card.

    Args:
        args: of an export.
        file: the safetensors file.
        is_foreign: with the names of another program.
    """
    common.warn_of_missing_end(args.run)
    if args.no_card:
        _write_weights(args, args.step, file, is_foreign)
        return
    from engine.api.saved_run import SavedRun
    from engine.checkpoint.bucket_copy import readable
    from engine.lineage import card, card_results
    from engine.observe.progress import CountProgress

    card.check_replaceable(file)
    team = card.TeamText(
        card.read_team_text(args.intended_use, "--intended-use"), card.read_team_text(args.limits, "--limits")
    )
    step = args.step
    if args.group:
        step = SavedRun(args.run).choose(step)
        card_results.check_group(readable(args.run), step, args.group)
    _write_weights(args, step, file, is_foreign)
    with CountProgress("resampling", "parts", delay_s=PATIENCE_S) as progress:
        path = card.write_card(file, team, args.group or "", readable(args.run), progress.update)
    print(f"model card: {path}")


def _write_weights(args: argparse.Namespace, step: int | str | None, file: Path, is_foreign: bool) -> None:
    from engine.api.inference import export

    names = _write_foreign(args, step, file) if is_foreign else export(args.run, file, step=step)
    print(f"wrote {len(names)} arrays to {file}")


def _write_foreign(args: argparse.Namespace, step: int | str | None, file: Path) -> list[str]:
    from engine.api.lineage import record_export
    from engine.api.saved_run import SavedRun, load
    from engine.hub.matching import part_of
    from engine.hub.writing import save
    from engine.run import atomic

    found = load(args.run, step=step)
    model = _without_adapters(found.model)
    describe = None if args.part or Path(args.out) == file else getattr(found.task, "config_json", None)
    config = describe() if describe is not None else ""
    if Path(args.out) != file:
        _make_folder(file.parent)
    names = save(part_of(model, args.part, "--part") if args.part else model, file, args.like)
    record_export(file, SavedRun(args.run), found.step, averaged=found.config.train.ema_decay is not None)
    if config:
        atomic.write_text(file.parent / "config.json", config)
        print(f"wrote {file.parent / 'config.json'}")
    return names


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"--out = {folder}: no folder can be made there ({error.strerror or error}). Choose another path, or a new "
            f"file {folder}{SUFFIX}."
        ) from error


def _without_adapters(model: "nnx.Module") -> "nnx.Module":
    """Returns the model, with its adapters in its kernels if it has any."""
    from flax import nnx

    from engine.adapters.merge import merged
    from engine.adapters.modules import applied_to

    has_adapters = any(applied_to(module) for _, module in nnx.iter_modules(model))
    return merged(model) if has_adapters else model
