"""`convoy evaluate`: runs the evaluations of a run on its checkpoints."""

import argparse
from typing import TYPE_CHECKING

from engine.base.errors import ConfigError
from engine.cli import common, ray_flags
from engine.cluster import group
from engine.cluster.exit_status import ExitStatus
from engine.cluster.peer_failure import lost_peers_reported

if TYPE_CHECKING:
    from engine.metrics.results import Result


PATIENCE_S = 3.0  # an evaluation that takes longer shows its progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy evaluate`."""
    parser.add_argument("run", help="run directory")
    parser.add_argument(
        "--step", help="a step, latest, best, a list 100,200,latest, or all (default: best, else latest)"
    )
    parser.add_argument(
        "--follow", action="store_true", help="evaluate each checkpoint of a running job once, until the run is done"
    )
    parser.add_argument(
        "--timeout", metavar="TIME", help="for --follow: end after this time without a change of the run: '2 hours'"
    )
    parser.add_argument_group(
        "settings", "--evaluations.NAME.data.target=... and other fields of evaluations, or --config.NAME=VALUE"
    )
    ray_flags.add_flags(parser, adds_processes=True)
    common.add_process_flags(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy evaluate`."""
    if args.follow and args.step:
        raise ConfigError("--follow evaluates every checkpoint. Remove --step.")
    if args.timeout and not args.follow:
        raise ConfigError("--timeout limits how long --follow waits. Add --follow.")
    if args.follow and args.on == "ray":
        raise ConfigError("--follow evaluates on this machine. Remove --on=ray.")
    common.join(args)
    pool = ray_flags.ray_pool(args, devices=True)
    with common.fast_import():
        from engine.api import follow, inference
        from engine.api.saved_evaluations import SavedEvaluations
        from engine.metrics.results import result_text, titled
        from engine.observe.progress import CountProgress

    if group.is_primary() and not args.follow:  # which waits for the next attempt
        common.warn_of_missing_end(args.run)
    compute = None
    if pool is not None:
        from engine.ray.inference import RayEvaluations

        compute = RayEvaluations(pool)
    printed = False
    counts: dict[str, CountProgress] = {}

    def count(name: str, done: int, total: int) -> None:
        if done == 1:
            counts[name] = CountProgress(f"evaluating {name}", "batches", group.is_primary(), delay_s=PATIENCE_S)
        counts[name].update(done, total)
        if done == total:
            counts[name].close()

    def show(results: "dict[str, Result]") -> None:
        nonlocal printed
        if group.is_primary():
            texts = {titled(name, value): text for name, value in results.items() if (text := result_text(value))}
            lines = [f"{name}:{text if text.startswith('\n') else f' {text}'}" for name, text in texts.items()]
            print("\n".join([*[""] * printed, *lines]), flush=True)
        printed = True

    with lost_peers_reported():
        if args.follow:
            follow.follow(args.run, overrides=overrides, timeout=args.timeout, on_results=show, on_message=common.say)
        else:
            steps = args.step or [None]
            evaluations = SavedEvaluations(args.run, overrides=overrides, on_message=common.say, on_batch=count)
            inference.run_steps(evaluations, steps, show, compute)
    return ExitStatus.DONE
