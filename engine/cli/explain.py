"""`convoy explain`: prints the mesh of a config, the memory of a device, and the collectives."""

import argparse

from engine.cli import common
from engine.cluster.exit_status import ExitStatus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy explain`."""
    common.add_config_flag(parser)
    parser.add_argument("--devices", type=int, help="number of devices (default: the product of the mesh axes)")
    parser.add_argument(
        "--hardware", metavar="TARGET", help="compile for v5p:4x4x8, v5e:16x16*2, h100:32x8 or local (extra: aot)"
    )
    parser.add_argument(
        "--no-collectives", action="store_true", help="do not compile, which takes long for large models"
    )


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy explain`."""
    config = common.load_config(args.config, overrides)
    from engine.api.explain import explain_parts

    wanted = {
        "devices": args.devices,
        "collectives": not args.no_collectives,
        "hardware": args.hardware,
        "run": args.config,
    }
    for text in explain_parts(config, **wanted):
        print(text, flush=True)
    return ExitStatus.DONE
