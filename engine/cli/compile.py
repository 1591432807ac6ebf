"""`convoy compile`: compiles the programs of a run before it starts."""

import argparse

from engine.base.errors import ConfigError
from engine.cli import common
from engine.cluster import group
from engine.cluster.exit_status import ExitStatus
from engine.cluster.peer_failure import lost_peers_reported

EXAMPLES = """
Without --out, the programs go to the compilation cache of this user, and a start on this kind of
machine finds them there. With --out they are executables in a folder, also for hardware that is
absent (--hardware needs the extra aot); the job loads them if it finds the same versions, devices
and programs, and otherwise warns and compiles as usual:

  convoy compile --config=configs.digits
  convoy compile --config=configs.digits --out=programs
  convoy train --config=configs.digits --config.cache.programs=programs
  convoy compile --config=configs.digits --hardware=v5e:4x4 --out=programs-v5e
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy compile`."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    common.add_config_flag(parser)
    parser.add_argument(
        "--hardware", metavar="TARGET", help="v5p:4x4x8, v5e:16x16*2, h100:32x8, ... (default: the devices here)"
    )
    parser.add_argument("--out", metavar="DIR", help="folder for executables (default: the compilation cache)")
    common.add_process_flags(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy compile`."""
    config = common.load_config(args.config, overrides)
    if args.hardware is not None and args.out is None:
        raise ConfigError(
            f"--hardware={args.hardware}: where are the programs to be written? Add --out=DIR, a folder that the job "
            "will read, and train with --config.cache.programs=DIR."
        )
    common.join(args)
    from engine.api.compile import precompile_for

    with lost_peers_reported():
        for line in precompile_for(config, args.hardware, args.out, common.say, args.config):
            if group.is_primary():
                print(line, flush=True)
    return ExitStatus.DONE
