"""`convoy sweep status` and `convoy sweep best`: what a sweep has found so far."""

import argparse
from collections.abc import Callable

from engine.base.errors import ConfigError
from engine.cluster.exit_status import ExitStatus
from engine.storage.mounts import local_path, shown


def add_actions(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the parsers of the two actions; `add_parser` is the method of the actions of `convoy sweep`."""
    status = add_parser("status", help="print progress, the best trial, time left and all trials")
    status.add_argument("folder", metavar="FOLDER", help="folder of the sweep, which may still run")
    shown = status.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print a JSON object")
    shown.add_argument("--csv", metavar="FILE", help="write the table of all trials instead")
    best = add_parser("best", help="write the config of the best trial to best.py in the folder")
    best.add_argument("folder", metavar="FOLDER", help="folder of the sweep, which may still run")
    for action in (status, best):
        action.set_defaults(parser=action)


def run_action(args: argparse.Namespace) -> int:
    """Runs the action."""
    return {"status": _status, "best": _best}[args.action](args)


def _status(args: argparse.Namespace) -> int:
    from engine.base import json_text
    from engine.sweeps.status import status_of
    from engine.sweeps.table import to_csv

    found = status_of(local_path(args.folder))
    if args.json:
        print(json_text.dumps(found.data()))
    elif args.csv:
        output = local_path(args.csv)
        try:
            output.write_text(to_csv(found.sweep))
        except OSError as error:
            raise ConfigError(f"--csv={args.csv}: cannot be written ({error.strerror}).") from error
        print(f"wrote {shown(output)}")
    else:
        print(found.text())
    return ExitStatus.DONE


def _best(args: argparse.Namespace) -> int:
    from engine.sweeps.best import write_best

    file = shown(write_best(local_path(args.folder)))
    print(f"wrote {file}: convoy train --config={file}")
    return ExitStatus.DONE
