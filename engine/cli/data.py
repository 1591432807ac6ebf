"""The commands about datasets: `convoy data write` and `convoy data check`."""

import argparse
from typing import TYPE_CHECKING

from engine.base.errors import ConfigError, did_you_mean
from engine.cli import commands
from engine.cluster.exit_status import ExitStatus
from engine.storage.mounts import local_text

if TYPE_CHECKING:
    from engine.config.schema import Data

SHOWN = 10  # bad examples that are printed


def data(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy data ACTION`."""
    section = _section(args, overrides)
    return _write(args, section) if args.action == "write" else _check(args, section)


def _section(args: argparse.Namespace, overrides: list[str]) -> "Data":
    """Returns the section that the flags describe: of a config, or of `--data.*` alone."""
    if args.config is not None:
        from engine.config import load

        config = load(local_text(args.config), overrides)
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


def _write(args: argparse.Namespace, section: "Data") -> int:
    with commands.fast_import():
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
            processes=args.processes,
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


def _check(args: argparse.Namespace, section: "Data") -> int:
    with commands.fast_import():
        from engine.datasets.check import check_dataset
    from engine.observe.progress import CountProgress

    with CountProgress("checking", "examples") as progress:
        report = check_dataset(section, processes=args.processes, on_progress=progress.update)
    print(report.to_json() if args.json else report.to_text())
    return ExitStatus.USER_ERROR if report.faults else ExitStatus.DONE
