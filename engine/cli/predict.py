"""`convoy predict`: writes the predictions of a run over a dataset to a file."""

import argparse

from engine.base.errors import ConfigError
from engine.cli import common, ray_flags
from engine.cluster import group
from engine.cluster.exit_status import ExitStatus
from engine.cluster.peer_failure import lost_peers_reported


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy predict`."""
    parser.add_argument("run", help="run directory")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write: NAME.npz or NAME.parquet")
    parser.add_argument("--format", metavar="NAME", help="write the file of a public benchmark, such as nuscenes")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--figures", type=int, default=0, metavar="N", help="also draw the first N, with Task.figure")
    parser.add_argument("--fields", metavar="NAMES", help="also keep entries of the examples, such as label,boxes")
    parser.add_argument("--step", help="a step, latest or best (default: best if the run selects one, else latest)")
    parser.add_argument("--evaluation", metavar="NAME", help="read the data of this evaluation of the run")
    parser.add_argument("--batch-size", type=int, help="examples per batch (default: that of the evaluation)")
    parser.add_argument_group(
        "data", "--data.target=NAME and --data.ARGUMENT=VALUE give a dataset; --config.NAME=VALUE sets other fields"
    )
    ray_flags.add_flags(parser, adds_processes=True)
    common.add_process_flags(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy predict`."""
    if args.batch_size is not None and args.batch_size < 1:
        raise ConfigError(f"--batch-size = {args.batch_size}: allowed is a whole number from 1.")
    if args.figures < 0:
        raise ConfigError(f"--figures = {args.figures}: allowed is a whole number from 0.")
    common.join(args)
    pool = ray_flags.ray_pool(args, devices=True)
    with common.fast_import():
        from engine.api import inference
    from engine.observe.progress import CountProgress

    compute = None
    if pool is not None:
        from engine.ray.inference import RayPredictions

        compute = RayPredictions(pool, args.out, common.say)

    if group.is_primary():
        common.warn_of_missing_end(args.run)
    with lost_peers_reported(), CountProgress("predicting", "examples", shown=group.is_primary()) as progress:
        inference.predict(
            args.run,
            evaluation=args.evaluation,
            step=args.step,
            batch_size=args.batch_size,
            overrides=overrides,
            out=args.out,
            overwrite=args.overwrite,
            figures=args.figures,
            fields=[name for name in (args.fields or "").split(",") if name],
            format=args.format,
            compute=compute,
            on_progress=progress.update,
            on_message=common.say,
        )
    if group.is_primary():
        print(f"wrote predictions of {progress.done} examples to {args.out}")
    return ExitStatus.DONE
