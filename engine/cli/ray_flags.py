"""The flags of the verbs whose jobs may run on a Ray cluster."""

import argparse
from typing import TYPE_CHECKING

from engine.base.errors import ConfigError
from engine.cluster import group

if TYPE_CHECKING:
    from engine.ray.pool import RayPool

PLACES = ("local", "ray")


def add_flags(parser: argparse.ArgumentParser, adds_processes: bool = False) -> None:
    """Adds the flags that choose where jobs run.

    Args:
        parser: parser of the verb.
        adds_processes: adds --processes, for a verb whose processes are only those of a cluster.
    """
    group = parser.add_argument_group("many machines")
    group.add_argument("--on", choices=PLACES, default="local", help="this machine (default), or a Ray cluster")
    group.add_argument(
        "--address", metavar="HOST:PORT", help="of the Ray cluster (default: RAY_ADDRESS, or the local one)"
    )
    if adds_processes:
        group.add_argument("--processes", type=int, help="workers on the Ray cluster (default: one per GPU, or CPU)")


def ray_pool(args: argparse.Namespace, devices: bool = False) -> "RayPool | None":
    """Returns the pool of `--on=ray` with as many workers as `--processes` states; None for `--on=local`.

    Args:
        args: the parsed arguments.
        devices: as for `RayPool`. Such verbs have no processes of their own on this machine.

    Raises:
        ConfigError: --address without --on=ray, or no such cluster.
    """
    if args.on == "local":
        if args.address is not None:
            raise ConfigError("--address is that of a Ray cluster. Add --on=ray.")
        if devices and args.processes is not None:
            raise ConfigError("--processes is the number of workers of --on=ray. Add it, or start several processes.")
        return None
    if group.count() > 1:
        raise ConfigError("--on=ray starts the workers itself. Start the command as one process.")
    from engine.ray.connection import connect
    from engine.ray.pool import RayPool

    connect(args.address)  # before the data is read
    return RayPool(args.address, args.processes, devices)
