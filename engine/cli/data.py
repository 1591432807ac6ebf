"""`convoy data write` and `convoy data check`: write a dataset as ArrayRecord files, or check every example of it."""

import argparse
from typing import TYPE_CHECKING

from engine.base.errors import ConfigError, did_you_mean
from engine.cli import common, ray_flags
from engine.cluster.exit_status import ExitStatus

if TYPE_CHECKING:
    from engine.config.schema import Data
    from engine.datasets.pool import Pool

SHOWN = 10  # bad examples that are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the parsers of the actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, prog="convoy data")
    write = actions.add_parser(
        "write", help="write every example to ArrayRecord files; again, to continue after a kill"
    )
    write.add_argument(
        "--out", required=True, help="file to write; NAME-00003-of-00016.arrayrecord for NAME.arrayrecord in 16 shards"
    )
    write.add_argument("--shards", type=int, help="number of files (default: one for each 64 MiB, at most 1024)")
    write.add_argument("--overwrite", action="store_true", help="replace an existing dataset")
    check = actions.add_parser(
        "check", help="read every example, and report bad ones, shapes, sizes, classes and throughput"
    )
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    for action in (write, check):
        common.add_config_flag(action, required=False)
        action.add_argument("--evaluation", metavar="NAME", help="the data of this evaluation, instead of training")
        action.add_argument(
            "--processes", type=int, help="number of processes (default: one per core; with --on=ray one per CPU)"
        )
        action.add_argument_group(
            "data", "--data.target=NAME and --data.ARGUMENT=VALUE give a dataset without a config"
        )
        ray_flags.add_flags(action)
        action.set_defaults(parser=action)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy data ACTION`."""
    section = _section(args, overrides)
    processes = ray_flags.ray_pool(args) or args.processes
    return _write(args, section, processes) if args.action == "write" else _check(args, section, processes)


def _section(args: argparse.Namespace, overrides: list[str]) -> "Data":
    """Returns the section that the flags describe: of a config, or of `--data.*` alone."""
    if args.config is not None:
        config = common.load_config(args.config, overrides)
        if args.evaluation is None:
            return config.data
        if args.evaluation not in config.evaluations:
            near = did_you_mean(args.evaluation, config.evaluations)
            names = ", ".join(config.evaluations) or "none"
            raise ConfigError(f"--evaluation={args.evaluation}: no such evaluation.{near} The config has: {names}.")
        return config.evaluations[args.evaluation].data
    if args.evaluation is not None or not any(text.startswith("data.") for text in overrides):
        raise ConfigError(
            f"convoy data {args.action}: no dataset. Name a config with --config=CONFIG, or a source with "
            "--data.target=package.module.Name and --data.ARGUMENT=VALUE."
        )
    from engine.datasets.given import data_section

    return data_section(overrides)


def _write(args: argparse.Namespace, section: "Data", processes: "int | Pool | None") -> int:
    with common.fast_import():
        from engine.datasets.write import write_dataset
    from engine.observe.progress import CountProgress

    with CountProgress("writing", "examples") as progress, CountProgress("sending", "files") as sending:

        def show_sent(done: int, total: int) -> None:
            progress.close()
            sending.update(done, total)

        written = write_dataset(
            section,
            args.out,
            shards=args.shards,
            processes=processes,
            overwrite=args.overwrite,
            on_progress=progress.update,
            on_sent=show_sent,
        )
    files = "" if len(written.paths) == 1 else f" in {len(written.paths)} files"
    kept = f"; {written.kept} were finished before" if written.kept else ""
    print(f"wrote {written.examples} examples to {args.out}{files}{kept}")
    for index in sorted(written.bad)[:SHOWN]:
        print(f"left out example {index}: {written.bad[index]}")
    if len(written.bad) > SHOWN:
        print(f"left out {len(written.bad) - SHOWN} more examples; {args.out}.manifest.json names them")
    print(f"Read them with data.target=engine.readers.array_record.ArrayRecordSource and data.pattern={args.out}")
    return ExitStatus.DONE


def _check(args: argparse.Namespace, section: "Data", processes: "int | Pool | None") -> int:
    with common.fast_import():
        from engine.datasets.check import check_dataset
    from engine.observe.progress import CountProgress

    with CountProgress("checking", "examples") as progress:
        report = check_dataset(section, processes=processes, on_progress=progress.update)
    print(report.to_json() if args.json else report.to_text())
    return ExitStatus.USER_ERROR if report.faults else ExitStatus.DONE
