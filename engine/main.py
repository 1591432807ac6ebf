"""The command line: one verb a job. Knows words and exit codes; every job is a function elsewhere.

Nothing heavy is imported before a verb needs it, so that `convoy --help` answers at once.
"""

import argparse
import contextlib
import datetime
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from engine.cluster import ending, exit_codes, peers, processes
from engine.cluster.cause import cause_of
from engine.config.errors import ConfigError, ConvoyError, did_you_mean
from engine.launch.pages import start_with_large_pages

VERBS = """
  convoy train --config=configs.digits                     train, or go on where the run stopped
  convoy train --config=configs.digits --fast-dev-run      two steps of everything, in seconds
  convoy train --config=runs/digits --workdir=runs/digits  the same run by its own stored config
  convoy evaluate runs/digits                              the best checkpoint, or --step=N
  convoy config configs.digits                             every setting, resolved
  convoy explain --config=configs.digits                   mesh, parameters, where each lies
  convoy checkpoints runs/digits                           steps, sizes, results
  convoy launch local --processes 2 -- train --config=...  a command in several processes

--config takes a file, a module or a run directory; --config.NAME=VALUE sets any field of it
(convoy config --help lists them). Exit codes: 0 done, 1 your error, 42 start me again,
43 do not retry, 130 interrupted.
"""


class Parser(argparse.ArgumentParser):
    """Tells a mistake as every other one is told: a sentence and exit code 1."""

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
    train.add_argument("--workdir", help="run directory (default: runs/<name of the config>)")
    train.add_argument("--fresh", action="store_true", help="start anew; an earlier run there is moved aside")
    train.add_argument("--fast-dev-run", action="store_true", help="two steps of everything: train, save, evaluate")
    train.add_argument(
        "--accept-schedule-change", action="store_true", help="go on though train.total alters the learning rates"
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

    checkpoints = verbs.add_parser("checkpoints", help="list the checkpoints of a run, or export one")
    checkpoints.add_argument("run", help="run directory")
    checkpoints.add_argument(
        "--export", metavar="FILE", help="write weights (the averaged ones, if any) as safetensors"
    )
    checkpoints.add_argument("--step", help="which to export: a step, latest or best")

    data = verbs.add_parser("data", help="convert a dataset to ArrayRecord files")
    _add_config(data)
    data.add_argument("action", choices=["write"], help="write: the config's training data")
    data.add_argument("--out", required=True, help="file to write")

    launch = verbs.add_parser(
        "launch", help="run a command in several processes", usage="convoy launch local [options] -- VERB ..."
    )
    launch.add_argument("where", choices=["local"], help="local: on this machine")
    launch.add_argument("--processes", type=int, required=True, help="how many")
    launch.add_argument(
        "--devices-per-process", type=int, help="CPU devices of each; without it JAX takes what it finds"
    )
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
        group.add_argument(processes.FLAGS[name], dest=name, help=f"{text} (or {processes.VARIABLES[name]})")


def split_overrides(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes `--config.a.b=value` and `--config.a.b value` out of the arguments; returns the rest and `a.b=value`."""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code; a user's mistake is a sentence, not a traceback.

    One of several processes that fails alone does not return but ends at once: its peers wait for it.
    """
    os.chdir(os.environ.get("BUILD_WORKING_DIRECTORY", "."))  # `bazel run` starts programs elsewhere
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # configs and models of the user's own lie where the command is given
    together = False
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        peers.part()
        return code
    except ConvoyError as error:
        code, together = error.exit_code, error.everywhere
        ending.tell(code, f"{error.kind}: {error}", cause_of(error))
    except KeyboardInterrupt:
        code = exit_codes.INTERRUPTED
    except BrokenPipeError:  # `convoy config ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = exit_codes.DONE
    except Exception as error:
        if processes.count() == 1 and not ending.wanted():
            raise
        code = exit_codes.USER_ERROR
        ending.tell(code, traceback.format_exc(), cause_of(error))
    if processes.count() > 1 and not together:
        ending.end_alone(code)
    with contextlib.suppress(peers.LostPeer):  # how the run ended is told already
        peers.part()
    return code


def _run(words: list[str]) -> int:
    """Finds the verb and runs it; what follows `--` is a command to launch."""
    launched = words.index("--") if "--" in words else len(words)
    rest, overrides = split_overrides(words[:launched])
    top, verbs = make_parser()
    if rest and not rest[0].startswith("-") and rest[0] not in verbs:
        raise ConfigError(f"{rest[0]}: no such verb.{did_you_mean(rest[0], verbs)} Verbs: {', '.join(verbs)}.")
    args, unknown = top.parse_known_args(rest)
    if args.verb is None:
        top.print_help()
        return exit_codes.DONE
    args.command = words[launched + 1 :]
    if args.verb != "launch":
        unknown += words[launched:]
    if unknown:
        raise _unknown_argument(args.verb, unknown[0], verbs[args.verb])
    return _VERBS[args.verb](args, overrides)


def _unknown_argument(verb: str, word: str, parser: Parser) -> ConfigError:
    names = [name.strip("[]") for name in parser.format_usage().split() if name.strip("[]").startswith("--")]
    return ConfigError(
        f"{word}: unknown argument of convoy {verb}.{did_you_mean(word.split('=')[0], names)} "
        f"Arguments here: {', '.join(names)}, and --config.NAME=VALUE."
    )


def _train(args: argparse.Namespace, overrides: list[str]) -> int:
    from engine.config import load

    config = load(args.config, overrides)
    _join(args)
    from engine import entry

    with peers.lost_peers_told():
        entry.train(
            config,
            workdir=args.workdir,
            fresh=args.fresh,
            fast_dev_run=args.fast_dev_run,
            accept_schedule_change=args.accept_schedule_change,
        )
    return exit_codes.DONE


def _evaluate(args: argparse.Namespace, overrides: list[str]) -> int:
    _no_overrides(overrides, "evaluate")
    _join(args)
    from engine import entry

    with peers.lost_peers_told():
        results = entry.evaluate(args.run, step=args.step)
    if processes.is_first():
        for name, value in results.items():
            print(f"{name}: {value:.6g}")
    return exit_codes.DONE


def _join(args: argparse.Namespace) -> None:
    """Joins the other processes, where there are any."""
    processes.initialize(processes.resolve({name: getattr(args, name) for name in processes.FLAGS}))


def _launch(args: argparse.Namespace, overrides: list[str]) -> int:
    from engine.launch import local

    if overrides:
        raise ConfigError(f"--config.{overrides[0]}: belongs to the command. Write it after --.")
    if not args.command or args.command[0] == "launch":
        found = "another launch" if args.command else "nothing"
        raise ConfigError(f"convoy launch local: {found} after --. Write a verb: convoy launch local ... -- train ...")
    words = [sys.executable, "-m", "engine.main", *args.command]
    return local.launch(words, processes=args.processes, devices=args.devices_per_process)


def _config(args: argparse.Namespace, overrides: list[str]) -> int:
    from engine.config import help_text, load, to_text

    if args.help or args.config is None:
        print(help_text())
        return exit_codes.DONE
    print(to_text(load(args.config, overrides)), end="")
    return exit_codes.DONE


def _explain(args: argparse.Namespace, overrides: list[str]) -> int:
    from engine.config import load

    config = load(args.config, overrides)
    from engine import entry
    from engine.parallel.collectives import collectives
    from engine.parallel.mesh import stand_in_devices
    from engine.parallel.report import describe, describe_collectives

    if args.devices is not None and args.devices < 1:
        raise ConfigError(f"--devices = {args.devices}: allowed is a whole number from 1.")
    config, devices = stand_in_devices(config, args.devices)
    program, total = entry.program(config, devices)
    mesh = program.mesh
    print(describe(config, mesh, program.abstract_state, program.spec.model.names, total))
    for text in program.warnings:
        print(f"warning: {text}")
    if mesh.size > 1 and not args.no_collectives:
        found = collectives(program.trace(1).lower().compile().as_text(), mesh)
        print(describe_collectives(found, mesh.devices.flat[0].platform))
    return exit_codes.DONE


def _checkpoints(args: argparse.Namespace, overrides: list[str]) -> int:
    from engine import entry

    _no_overrides(overrides, "checkpoints")
    if args.export:
        names = entry.export(args.run, args.export, step=args.step)
        print(f"wrote {len(names)} arrays to {args.export}")
        return exit_codes.DONE
    for info in entry.checkpoints(args.run):
        results = "  ".join(f"{name} {value:.6g}" for name, value in info.results.items())
        when = datetime.datetime.fromtimestamp(info.time).isoformat(" ", "seconds")
        print(f"step {info.step:>8}  {info.bytes / 2**20:>9.1f} MiB  {when}  {results}".rstrip())
    return exit_codes.DONE


def _data(args: argparse.Namespace, overrides: list[str]) -> int:
    from engine.config import load

    config = load(args.config, overrides)
    from engine.config.target import build
    from engine.data.array_record import write_array_record

    count = write_array_record(build(config.data, "data"), args.out)
    print(
        f"wrote {count} examples to {args.out}. Read them with data.target=engine.data.array_record.ArrayRecordSource"
    )
    return exit_codes.DONE


def _no_overrides(overrides: list[str], verb: str) -> None:
    if overrides:
        raise ConfigError(f"--config.{overrides[0]}: convoy {verb} reads the run's own config and takes no overrides.")


_VERBS = {
    "train": _train,
    "evaluate": _evaluate,
    "config": _config,
    "explain": _explain,
    "checkpoints": _checkpoints,
    "data": _data,
    "launch": _launch,
}


def run() -> NoReturn:
    """The command `convoy`: a process of its own, which may start itself anew first (`launch/pages.py`)."""
    start_with_large_pages()
    sys.exit(main())


if __name__ == "__main__":
    run()
