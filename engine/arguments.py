"""The parser of the command line: its verbs, their arguments, and the errors about unknown words.

The verbs are run by `main.py`. Settings of a config, `--config.NAME=VALUE`, are parsed by `config/override.py`.
"""

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from engine.cluster import cluster_detection
from engine.config.errors import ConfigError, did_you_mean
from engine.launch import verbs as launchers

VERBS = """
  convoy train --config=configs.digits                     train, or go on where the run stopped
  convoy train --config=configs.digits --fast-dev-run      two steps of everything, in seconds
  convoy train --config=runs/digits --workdir=runs/digits  the same run by its own stored config
  convoy evaluate runs/digits                              the best checkpoint, or --step=N
  convoy config configs.digits                             every setting, resolved
  convoy explain --config=configs.digits                   mesh, parameters, where each lies
  convoy checkpoints runs/digits                           steps, sizes, results
  convoy checkpoints verify runs/digits                    whether every bit is as it was saved
  convoy doctor                                            what this machine and its scheduler offer
  convoy launch local --processes 2 -- train --config=...  a command in several processes
  convoy launch slurm --help                               the same on a cluster; also k8s, tpu-vm
  convoy goodput runs/digits                               where its time went
  convoy supervise -- train --config=configs.digits        start it again until it is done

--config takes a file, a module or a run directory; --config.NAME=VALUE sets any field of it
(convoy config --help lists them). Exit codes: 0 done, 1 your error, 42 start me again,
43 do not retry, 130 interrupted.
"""


class Parser(argparse.ArgumentParser):
    """Reports parse errors like any other user error: one sentence, exit code 1. Arguments are written in full."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}. For help: {self.prog} --help")


def make_parser() -> tuple[Parser, dict[str, Parser]]:
    """Returns the parser, and that of each verb."""
    top = Parser(
        prog="convoy", description="Trains any Flax NNX model on any mesh.", epilog=VERBS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    verbs = top.add_subparsers(dest="verb", metavar="VERB")

    train = verbs.add_parser("train", help="train a config; the same command again goes on where the run stopped")
    _add_config(train)
    train.add_argument("--workdir", help="run directory, a folder or s3://BUCKET/PATH (default: runs/<name>)")
    train.add_argument("--fresh", action="store_true", help="start anew; an earlier run there is moved aside")
    train.add_argument("--fast-dev-run", action="store_true", help="two steps of everything: train, save, evaluate")
    train.add_argument(
        "--accept-schedule-change", action="store_true", help="go on though train.total alters the learning rates"
    )
    train.add_argument(
        "--accept-data-change", action="store_true", help="go on though the data is not what the run began with"
    )

    _add_processes(train)

    evaluate = verbs.add_parser("evaluate", help="the evaluations of a run's checkpoint")
    evaluate.add_argument("run", help="run directory")
    evaluate.add_argument("--step", help="a step, latest or best (default: best where there is one, else latest)")

    _add_processes(evaluate)

    config = verbs.add_parser("config", help="print a resolved config as lines `name: value`", add_help=False)
    config.add_argument("config", nargs="?", help="file, module or run directory")
    config.add_argument("-h", "--help", action="store_true", help="list every field with its default")

    explain = verbs.add_parser("explain", help="print the mesh, every parameter, the collectives; trains nothing")
    _add_config(explain)
    explain.add_argument("--devices", type=int, help="how many to explain for; without it, what the axes ask for")
    explain.add_argument("--no-collectives", action="store_true", help="compile nothing: for models that take long")

    checkpoints = verbs.add_parser("checkpoints", help="list, verify or export the checkpoints of a run")
    checkpoints.add_argument(
        "action", nargs="?", choices=["verify"], metavar="verify", help="read every file and compare it with its hash"
    )
    checkpoints.add_argument("run", help="run directory")
    checkpoints.add_argument(
        "--export", metavar="FILE", help="write weights (the averaged ones, if any) as safetensors"
    )
    checkpoints.add_argument("--step", help="which to export: a step, latest or best")

    goodput = verbs.add_parser("goodput", help="where the time of a run went, attempt by attempt")
    goodput.add_argument("run", help="run directory")

    data = verbs.add_parser("data", help="convert a dataset to ArrayRecord files")
    _add_config(data)
    data.add_argument("action", choices=["write"], help="write: the config's training data")
    data.add_argument("--out", required=True, help="file to write")

    launch = verbs.add_parser(
        "launch",
        help="run a command in several processes, here or on a cluster",
        usage="convoy launch WHERE [options] -- VERB ...",
    )
    places = launch.add_subparsers(dest="where", metavar="WHERE", required=True, prog="convoy launch")
    local = places.add_parser(
        "local", help="on this machine", usage="convoy launch local --processes N [options] -- VERB ..."
    )
    local.add_argument("--processes", type=int, required=True, help="how many")
    _add_devices(local)
    local.add_argument("--restarts", type=int, default=0, help="of a training that ended early, at most so many")
    for add in launchers.ADD.values():
        add(places.add_parser)
    for place in places.choices.values():
        place.set_defaults(parser=place)

    supervise = verbs.add_parser(
        "supervise", help="train, and start again until it is done", usage="convoy supervise [options] -- train ..."
    )
    supervise.add_argument("--processes", type=int, help="how many on this machine (default: this command's own one)")
    _add_devices(supervise)
    supervise.add_argument("--restarts", type=int, help="at most so many (default: as many as it takes)")

    doctor = verbs.add_parser("doctor", help="say what is found here: processes, versions, devices, a collective")
    doctor.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for the others (default: 60)")
    _add_processes(doctor)
    return top, dict(verbs.choices)


def _add_config(verb: Parser) -> None:
    verb.add_argument("--config", required=True, help="file, module or run directory; --config.NAME=VALUE sets a field")


def _add_processes(verb: Parser) -> None:
    group = verb.add_argument_group(
        "several processes", "each starts the same command; convoy launch sets the variables"
    )
    for name, text in (
        ("coordinator", "HOST:PORT of process 0, which listens there"),
        ("count", "how many processes there are"),
        ("index", "which one this is, from 0"),
    ):
        group.add_argument(
            cluster_detection.FLAGS[name], dest=name, help=f"{text} (or {cluster_detection.VARIABLES[name]})"
        )


def _add_devices(verb: Parser) -> None:
    text = "CPU devices of each process; without it JAX takes what it finds"
    verb.add_argument("--devices-per-process", type=int, help=text)


def split_overrides(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits `--config.a.b=value` and `--config.a.b value` off; returns the other arguments and `a.b=value`."""
    rest, overrides, words = [], [], iter(args)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
            continue
        name, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            value = next(words, None)
            if value is None:
                raise ConfigError(f"--config.{name}: no value. Write --config.{name}=VALUE.")
        overrides.append(f"{name}={value}")
    return rest, overrides


def parse(words: Sequence[str], after: Sequence[str] = ()) -> argparse.Namespace:
    """Returns the parsed arguments; `verb` is None where there is none.

    Args:
        words: without overrides.
        after: `--` and the command that follows it, which becomes `command`, or nothing.

    Raises:
        ConfigError: an unknown verb or argument.
    """
    top, verbs = make_parser()
    if words and not words[0].startswith("-") and words[0] not in verbs:
        raise ConfigError(f"{words[0]}: no such verb.{did_you_mean(words[0], verbs)} Verbs: {', '.join(verbs)}.")
    args, unknown = top.parse_known_args(words)
    args.command = list(after[1:])
    if (most := getattr(args, "restarts", None)) is not None and most < 0:
        raise ConfigError(f"--restarts = {most}: allowed is a whole number from 0.")
    if args.verb not in (None, "launch", "supervise"):
        unknown += after
    if args.verb is not None and unknown:
        raise _unknown_argument(unknown[0], getattr(args, "parser", verbs[args.verb]))
    return args


def _unknown_argument(word: str, parser: Parser) -> ConfigError:
    names = re.findall(r"^  (--[\w-]+)", parser.format_help(), re.MULTILINE)
    return ConfigError(
        f"{word}: unknown argument of {parser.prog}.{did_you_mean(word.split('=')[0], names)} "
        f"Arguments here: {', '.join(names)}, and --config.NAME=VALUE."
    )
