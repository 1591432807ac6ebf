"""`convoy runs`: lists runs, prints what they were made from, and sends them to a tracker."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from engine.base.errors import ConfigError
from engine.cli import common
from engine.cluster.exit_status import ExitStatus
from engine.storage.mounts import local_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the parsers of the actions; `Verb.actions` names them too."""
    parser.epilog = "convoy runs [FOLDER] without an action is convoy runs list [FOLDER]."
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, prog="convoy runs")
    _add_list(actions.add_parser("list", help="list the runs below a folder"))
    _add_lineage(actions.add_parser("lineage", help="print what a run or a file came from, and what came from it"))
    _add_push(actions.add_parser("push", help="send finished runs to a tracker; again, to send what is missing"))
    for action in actions.choices.values():
        action.set_defaults(parser=action)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy runs ACTION`."""
    common.refuse_overrides(overrides, f"runs {args.action}")
    return {"list": _list, "lineage": _lineage, "push": _push}[args.action](args)


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default="runs", help="folder with runs at any depth (default: runs)")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="runs that meet it: 'heldout/accuracy > 0.9', 'state = done', 'task.target ~ Forecast'; repeatable",
    )
    parser.add_argument("--sort", metavar="NAME", help="by a metric, a setting or a field; -NAME: largest first")
    parser.add_argument("--json", action="store_true", help="print all values of each run, one JSON object per line")


def _add_lineage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        nargs="?",
        metavar="RUN_OR_FILE",
        help="a run, a dataset, predictions or an export; with --saw, a folder (default: runs)",
    )
    parser.add_argument(
        "--below", metavar="FOLDER", help="search things that came from it here (default: the folder that holds it)"
    )
    parser.add_argument(
        "--saw",
        metavar="NAME",
        help="print what saw a file, a group or an example; exit code 0: certainly nothing, 1: something may have",
    )
    parser.add_argument("--json", action="store_true", help="print the tree, or the answers, as JSON")


def _list(args: argparse.Namespace) -> int:
    """Prints the runs below a folder."""
    from engine.base import json_text
    from engine.experiments.index import find_runs
    from engine.experiments.query import order, select
    from engine.experiments.run_table import table

    found = find_runs(local_path(args.folder))
    runs = select(found.runs, args.where)
    runs = order(runs, args.sort) if args.sort else runs
    if args.json:
        for record in runs:
            print(json_text.dumps({**dataclasses.asdict(record), "parent": record.parent}))
        return ExitStatus.DONE
    print(table(runs) if runs else _nothing(args.folder, len(found.runs)))
    for record in runs:
        if record.problem:
            print(f"{record.path}: {record.problem}", file=sys.stderr)
    if found.others:
        print(f"no runs: {', '.join(found.others)}", file=sys.stderr)
    return ExitStatus.DONE


def _lineage(args: argparse.Namespace) -> int:
    """Prints the lineage of a run or of a file, or what saw a name."""
    if args.saw is not None:
        return _saw(args)
    if args.path is None:
        raise ConfigError("convoy runs lineage: name a run or a file, or what may have been seen with --saw=NAME.")
    from engine.lineage.tree import lineage_of, to_text

    found = lineage_of(local_path(args.path), None if args.below is None else local_path(args.below))
    print(found.to_json() if args.json else to_text(found))
    _print_problems(found.problems)
    return ExitStatus.DONE


def _saw(args: argparse.Namespace) -> int:
    """Prints what saw a name; returns 1 unless it is certain that nothing did."""
    from engine.lineage.saw import to_text, who_saw

    if not args.saw:
        raise ConfigError("--saw: is empty. Give a file, a group such as a scene, or the key of an example.")
    if args.below is not None and args.path is not None:
        raise ConfigError(
            f"--below={args.below}: with --saw, the folder {args.path} is searched. Remove one of the two."
        )
    found = who_saw(args.saw, local_path(args.below or args.path or "runs"))
    print(found.to_json() if args.json else to_text(found))
    _print_problems(found.problems)
    return ExitStatus.DONE if found.is_clear else ExitStatus.USER_ERROR


def _print_problems(problems: Sequence[str]) -> None:
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)


def _add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory")
    parser.add_argument(
        "--to", required=True, metavar="NAME", help="csv, mlflow, tensorboard, trackio, wandb, or package.module.Class"
    )
    parser.add_argument("--uri", help="where to: a folder, the address of a server, or a Space")
    parser.add_argument("--project", metavar="NAME", help="the project, or the experiment of MLflow")


def _push(args: argparse.Namespace) -> int:
    """Sends runs to a tracker."""
    from engine.trackers.push import arguments_of, push

    for found in push(args.runs, args.to, arguments_of(args.to, args.uri, args.project)):
        damaged = f"; {found.damaged} damaged lines were left out" if found.damaged else ""
        print(f"{found.path}: sent {found.rows} rows{damaged}" if found.rows else f"{found.path}: nothing is missing")
    return ExitStatus.DONE


def _nothing(folder: str, count: int) -> str:
    if count:
        return f"None of the {count} runs below {folder} meets the conditions."
    return f"No runs below {folder}. `convoy train` writes runs to runs/NAME, or to --workdir."
