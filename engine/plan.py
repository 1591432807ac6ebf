"""Plans a run: `convoy plan`."""

import dataclasses
from collections.abc import Callable, Iterator

import jax

from engine.config import hardware
from engine.config.errors import ConfigError
from engine.config.schema import Config, MeshSpec
from engine.config.text import flatten
from engine.entry import AnyConfig, program, resolve_config
from engine.parallel.report import size_text
from engine.planning import machine as machines
from engine.planning import table
from engine.planning.search import changes, different, rank
from engine.planning.targets import parse

SHOWN = 8


def plan_parts(
    config: AnyConfig, target: str, *, on_progress: Callable[[str], None] = lambda text: None
) -> Iterator[str]:
    """Yields the parts of a plan of a config for a target (`planning/targets.py`) as soon as they are known.

    Raises:
        ConfigError: the target is none, or nothing fits; its text has the nearest changes that would.
    """
    config = resolve_config(config)
    found = parse(target)
    machine = machines.of_devices(jax.devices()) if found is None else machines.of_target(found)
    on_progress("building the model on one device")
    built, _ = program(_on_one_device(config), jax.devices("cpu")[:1])
    parameters = sum(x.size for x in built.abstract_state.params.values())
    state = (
        f"model: {parameters:,} parameters, {built.flops_per_step:.3g} model FLOPs for a step of "
        f"{built.batch_size} examples"
    )
    yield "\n".join(table.machine_text(machine, state))
    ranking = rank(built, config, machine, on_progress)
    if not ranking.fitting:
        raise ConfigError(_refusal(ranking, built, config))
    row = hardware.find(found.kind) if found else hardware.find(jax.devices()[0].device_kind)
    best, *others = different(ranking.fitting, SHOWN)
    peak = (row or machine).peak(best.candidate.precision)
    yield "\n" + "\n".join(table.table(ranking.model, [best, *others], peak))
    lines = ["", f"best: {best.candidate}", *(f"  {line}" for line in table.details(ranking.model, best))]
    lines += [f"  warning: {text}" for text in table.warnings(best, machine)]
    lines += [f"  {table.command(best.candidate, dict(flatten(config)))}", "", "the others:"]
    lines += [f"  {i}: {table.why(best, cost)}" for i, cost in enumerate(others, 2)]
    yield "\n".join(lines)
    if ranking.problems:
        reason, count = max(ranking.problems.items(), key=lambda item: item[1])
        yield f"\nimpossible meshes: {sum(ranking.problems.values())}, such as (x{count}): {reason}"


def _on_one_device(config: Config) -> Config:
    """Returns a config for one device, without the settings that a plan chooses."""
    train = dataclasses.replace(config.train, remat="none", accumulate=1, offload_optimizer=False, steps_per_dispatch=1)
    return dataclasses.replace(config, mesh=MeshSpec(), train=train)


def _refusal(ranking, built, config: Config) -> str:
    """Returns why nothing fits, and what would."""
    machine, nearest = ranking.model.machine, ranking.nearest
    if nearest is None:
        reasons = "; ".join(list(ranking.problems)[:3]) or (
            f"no mesh of {machine.count} devices divides train.global_batch_size = {ranking.choices.rows}"
        )
        return f"convoy plan: no mesh of {machine.text} is possible: {reasons}."
    parts = ", ".join(f"{name} {size_text(size)}" for name, size in nearest.memory.items())
    would = "; or ".join(changes(ranking, built, config)) or "a smaller model"
    return (
        f"convoy plan: nothing fits {machine.text}. The least of {ranking.examined:,} candidates, {nearest.candidate}, "
        f"needs {size_text(nearest.bytes)} of the {size_text(machine.memory)} of a device ({parts}). It would fit "
        f"with: {would}."
    )
