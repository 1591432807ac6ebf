"""`convoy plan`: chooses the mesh and memory settings of a config for hardware that may be absent."""

import argparse
import sys

from engine.base.errors import ConfigError
from engine.cli import common
from engine.cluster.exit_status import ExitStatus

DESCRIPTION = """
Chooses the mesh, the remat policy, the microbatches and further memory settings of a config for
hardware that may be absent. It traces the model once on one device, scores all candidates by
formula (memory first, then the time of products, memory and each network), and prints the best
ones, the winner as settings for convoy train, and why the others lost. Exit code 1 where nothing
fits, with the nearest changes that would.

  convoy plan --config=configs.digits --hardware=local        the devices of this machine
  convoy plan --config=configs.digits --hardware=h100:4x8     4 hosts of 8 H100
  convoy plan --config=configs.digits --hardware=v5p:2x2x4    a slice of TPU v5p
  convoy plan --config=configs.digits --hardware=v5e:4x4*2    two slices of TPU v5e
  convoy plan --config=configs.digits --hardware=h100:1x8 --compile=3
                                                              compile the best three (extra: aot)
  convoy plan --runs runs/digits                              errors of the predictions of runs
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy plan`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    common.add_config_flag(parser, required=False)
    parser.add_argument("--runs", nargs="+", metavar="DIR", help="print what was predicted and measured in these runs")
    parser.add_argument(
        "--hardware", default="local", metavar="TARGET",
        help="v5p:4x4x8, v5e:16x16*2 (slices), h100:32x8 (hosts x GPUs), or local, the default",
    )  # fmt: skip
    parser.add_argument(
        "--calibrate", action="store_true",
        help="measure products, memory and collectives of the devices at hand first, and store the rates",
    )  # fmt: skip
    parser.add_argument(
        "--compile", type=int, default=0, metavar="N",
        help="compile the best N candidates ahead of time; their memory and traffic replace the formula's (extra: aot)",
    )  # fmt: skip


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy plan`."""
    if args.runs is not None:
        return _compare_runs(args, overrides)
    if args.config is None:
        raise ConfigError("convoy plan: no config. Add --config=CONFIG, or --runs DIR for the errors of earlier plans.")
    config = common.load_config(args.config, overrides)
    from engine.planning.plan import plan_parts

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    for text in plan_parts(
        config, args.hardware, compiles=args.compile, calibrates=args.calibrate, on_progress=progress
    ):
        print(text, flush=True)
    return ExitStatus.DONE


def _compare_runs(args: argparse.Namespace, overrides: list[str]) -> int:
    """Prints what the plans of earlier runs predicted and what was measured."""
    from engine.planning.record_table import plans

    if overrides or args.config is not None or args.hardware != "local" or args.compile or args.calibrate:
        raise ConfigError("--runs prints what earlier runs recorded. Remove the other arguments.")
    print(plans(args.runs))
    return ExitStatus.DONE
