"""`convoy sweep`: searches settings of a config with many runs; `sweep status` and `sweep best` read a sweep."""

import argparse
import functools
import shlex
import sys
from typing import TYPE_CHECKING

from engine.base.errors import ConfigError
from engine.cli import common, sweep_show
from engine.cluster.exit_status import ExitStatus

if TYPE_CHECKING:
    from engine.sweeps.folder import SweepFolder
    from engine.sweeps.sweep import SweepResult
    from engine.sweeps.workers import Workers

PLACES = ("local", "slurm", "k8s", "ray")
SPACE = "space."
PARALLEL_JOBS = 8  # jobs of a cluster at the same time, by default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the parsers of the actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, prog="convoy sweep")
    run = actions.add_parser("run", help="search; the same command again continues a sweep that was stopped")
    common.add_config_flag(run)
    run.add_argument("--space", metavar="FILE", help="file or module with get_space(); --space.NAME=DOMAIN sets one")
    run.add_argument("--trials", type=int, help="number of trials (default: 20, or all points of a grid)")
    run.add_argument("--metric", default="", help="evaluation/metric that is searched (default: checkpoint.best)")
    run.add_argument("--mode", default="auto", help="max, min, or auto: by the name of the metric (default: auto)")
    run.add_argument("--sampler", default="tpe", help="tpe (default), random, grid, qmc, cmaes or gp, by Optuna")
    run.add_argument("--prune", default="", help="halving or median: end bad trials early (default: end none)")
    run.add_argument("--rung", type=int, default=0, help="first step to prune at (default: the first evaluation)")
    run.add_argument("--factor", type=int, default=3, help="halving: one of so many continues (default: 3)")
    run.add_argument("--seeds", type=int, default=1, help="runs of each trial; ranked by their mean (default: 1)")
    run.add_argument("--budget", default="", help="of each run: 2000 steps, 10 minutes or 1e15 flops")
    run.add_argument("--seed", type=int, default=0, help="seed of the search (default: 0)")
    run.add_argument("--workdir", help="folder of the sweep (default: sweeps/<name>)")
    run.add_argument("--storage", default="", help="URL of a database for Optuna (default: a journal in the folder)")
    _add_place_flags(run)
    sweep_show.add_actions(actions.add_parser)
    run.set_defaults(parser=run)


def _add_place_flags(parser: argparse.ArgumentParser) -> None:
    place = parser.add_argument_group("where trials run")
    place.add_argument("--on", default="local", choices=PLACES, help="this machine or a cluster (default: local)")
    place.add_argument("--launch", default="", help="flags of convoy launch slurm, k8s or ray, in quotes")
    place.add_argument("--parallel", type=int, help="trials at a time (default: one per device or core; 8 jobs)")
    place.add_argument("--devices-per-trial", type=int, help="GPUs or TPU chips of a trial (default: an equal share)")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy sweep ACTION`."""
    if args.action == "run":
        return _run(args, overrides)
    common.refuse_overrides(overrides, f"sweep {args.action}")
    return sweep_show.run_action(args)


def _run(args: argparse.Namespace, overrides: list[str]) -> int:
    from engine.sweeps.folder import open_folder
    from engine.sweeps.space import Space
    from engine.sweeps.sweep import Search, run_search

    flags = dict(text.removeprefix(SPACE).split("=", 1) for text in overrides if text.startswith(SPACE))
    space = Space.parse(args.space, flags)
    search = Search(
        reference=args.config,
        overrides=[text for text in overrides if not text.startswith(SPACE)],
        space=space,
        metric=args.metric,
        mode=args.mode,
        sampler=args.sampler,
        trials=args.trials,
        prune=args.prune,
        rung=args.rung,
        factor=args.factor,
        seeds=args.seeds,
        budget=args.budget,
        seed=args.seed,
        storage=args.storage,
    )
    folder = open_folder(args.workdir or f"sweeps/{search.config().name}")
    result = run_search(search, folder, functools.partial(_workers, args), _say)
    return _report(result)


def _workers(args: argparse.Namespace, folder: "SweepFolder") -> "Workers":
    """Returns where the runs are executed, from the flags."""
    if args.parallel is not None and args.parallel < 1:
        raise ConfigError(f"--parallel={args.parallel}: allowed is a whole number from 1.")
    if args.on != "local" and args.devices_per_trial is not None:
        raise ConfigError(f"--devices-per-trial: has no meaning with --on={args.on}. Use the flags in --launch.")
    if args.on != "local":
        return _ray_workers(args, folder) if args.on == "ray" else _cluster_workers(args, folder)
    if args.launch:
        raise ConfigError("--launch: has no meaning with --on=local. Remove it.")
    from engine.sweeps.local import LocalWorkers
    from engine.sweeps.machine import shares

    return LocalWorkers(shares(args.parallel, args.devices_per_trial), folder.logs)


def _ray_workers(args: argparse.Namespace, folder: "SweepFolder") -> "Workers":
    """Returns the workers of a Ray cluster; `--launch` has flags of `convoy launch ray`."""
    from engine.cli.arguments import parse
    from engine.launch.cli_args import parse_numbers
    from engine.sweeps.ray_workers import RayWorkers

    found = parse(["launch", "ray", "--processes=1", *shlex.split(args.launch)], ["--", "train"])
    return RayWorkers(
        found.address,
        most=args.parallel,
        logs=folder.logs,
        cpus=found.cpus,
        gpus=found.gpus,
        resources=parse_numbers("--resource", found.resource),
    )


def _cluster_workers(args: argparse.Namespace, folder: "SweepFolder") -> "Workers":
    """Returns the workers of Slurm or Kubernetes; `--launch` has the flags of its launcher."""
    from engine.cli import launch
    from engine.cli.arguments import parse
    from engine.sweeps.cluster_workers import ClusterWorkers, Scheduler
    from engine.sweeps.kubernetes_jobs import KubernetesScheduler
    from engine.sweeps.slurm_jobs import SlurmScheduler

    words = ["launch", args.on, *shlex.split(args.launch)]
    scheduler: Scheduler
    if args.on == "slurm":
        found = parse([*words, f"--logs={folder.logs}"], ["--", "train"])
        scheduler = SlurmScheduler(launch.slurm_job(found))
    else:
        if folder.path.is_absolute() or folder.path.parts[:1] != ("runs",):
            raise ConfigError(f"--workdir={folder}: with --on=k8s, name a folder in runs/, which all pods share.")
        scheduler = KubernetesScheduler(launch.kubernetes_jobset(parse([*words, "--name=sweep"], ["--", "train"])))
    return ClusterWorkers(scheduler, folder.path, args.parallel or PARALLEL_JOBS)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _report(result: "SweepResult") -> int:
    if result.best is None:
        _say(f"{result.folder}: no trial has completed; {result.failed} of {result.trials} failed.")
        return ExitStatus.USER_ERROR
    from engine.sweeps.space import overrides

    values = " ".join(shlex.quote(f"--config.{text}") for text in overrides(result.values))
    print(f"best: trial {result.best}, {result.metric} {result.value:.6g}: {values}")
    return ExitStatus.DONE
