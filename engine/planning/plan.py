"""Plans a run: `convoy plan`."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax

from engine.api.prepared import AnyConfig, program, resolve_config, set_up_devices
from engine.base import html
from engine.base.errors import ConfigError, ConvoyError, first_line
from engine.base.formatting import size_text
from engine.base.types import Device
from engine.compile.program import Program
from engine.compile.step_costs import read
from engine.config import hardware
from engine.config.draft import draft_of
from engine.config.override import assign
from engine.config.schema import Config
from engine.config.setting import AUTO
from engine.config.text import flatten
from engine.config.validation import validate
from engine.parallel import targets
from engine.parallel.targets import HardwareTarget, parse
from engine.planning import calibration, table
from engine.planning import machine as machines
from engine.planning.candidates import Candidate, divisible, fewer_devices
from engine.planning.cost import CostModel
from engine.planning.machine import Machine
from engine.planning.memory import Cost
from engine.planning.search import SearchResult, changes, different, rank, simplest_first

SHOWN = 8


class Plan(str):
    """A plan as text. A notebook shows its candidates as a table."""

    parts: Sequence[str]

    def __new__(cls, parts: Sequence[str]):
        text = super().__new__(cls, "\n".join(parts))
        text.parts = parts
        return text

    def _repr_html_(self) -> str:
        return "".join(
            html.table(part.rows[1:], header=part.rows[0]) if isinstance(part, table.Rows) else html.paragraph(part)
            for part in self.parts
            if part
        )


def plan(
    config: AnyConfig,
    hardware: str = "local",
    *,
    compiles: int = 0,
    calibrates: bool = False,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Plans a run as `convoy plan` does: ranks meshes and memory settings for hardware that need not be there.

    Args:
        config: as for `train`.
        hardware: "h100:32x8" (hosts x GPUs), "v5p:4x4x8", "v5e:16x16*2" (slices), or "local": the devices at hand.
        compiles: number of the best candidates that are compiled ahead of time; needs the extra `aot`.
        calibrates: whether to measure the rates of the devices at hand first; for "local".
        on_progress: receives a line before each part of the work.

    Raises:
        ConfigError: as for `plan_parts`.
    """
    parts = plan_parts(config, hardware, compiles=compiles, calibrates=calibrates, on_progress=on_progress)
    return Plan(list(parts))


def plan_parts(
    config: AnyConfig,
    target: str,
    *,
    compiles: int = 0,
    calibrates: bool = False,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Iterator[str]:
    """Yields the parts of a plan of a config for a target (`parallel/targets.py`) as soon as they are known.

    Args:
        config: as for `train`.
        target: the hardware.
        compiles: number of the best candidates that are compiled ahead of time.
        calibrates: whether to measure the rates of the devices at hand first; for the target `local`.
        on_progress: receives a line before each part of the work.

    Raises:
        ConfigError: the target is none, the batch is auto, or nothing fits; then its text has the nearest changes
            that would.
    """
    config = resolve_config(config, cached=False)
    train = config.train
    found = parse(target)
    _check(train.global_batch_size, found, compiles, calibrates)
    config = _set_up(config, found)
    kind = found.kind if found else jax.devices()[0].device_kind
    hardware.check_precision(kind, train.precision)
    devices = targets.devices(target) if found is None or compiles else None
    machine = _local(on_progress, calibrates) if found is None else machines.of_target(found)
    on_progress("building the model on one device")

    def build(candidate: Candidate, devices: Sequence[Device] | None = devices) -> Program:
        return program(with_candidate(config, candidate), devices)[0]

    alone = (1,) * len(hardware.AXES)
    built = build(Candidate(alone, alone, precision=train.precision), jax.devices("cpu")[:1])
    parameters = sum(x.size for x in built.abstract_state.params.values())
    size = f"{parameters:,} parameters, {built.flops_per_step:.3g} model FLOPs"
    model = f"model: {size} for a step of {built.batch_size} examples"
    yield "\n".join(table.machine_text(machine, model, train.precision))
    result = rank(built, config, machine, on_progress)
    if not any(cost.candidate.precision == train.precision for cost in result.fitting):
        raise ConfigError(_refusal(result, train.precision))
    costs = different(result.fitting, SHOWN)
    if compiles:
        costs = _compiled(result.model, build, train.precision, costs, compiles, on_progress)
    if problems := [f"  {cost.candidate}: {cost.problem}" for cost in costs if cost.problem]:
        yield "\nimpossible when compiled:\n" + "\n".join(problems)
    possible = [cost for cost in costs if not cost.problem]
    own = [cost for cost in possible if cost.candidate.precision == train.precision]
    if not own or not result.model.fits(own[0]):
        raise ConfigError(_refusal_when_compiled(machine, own))
    peak = (hardware.find(kind) or machine).peak
    yield ""
    yield table.table(result.model, possible, peak)
    yield _ranked(result.model, possible, dict(flatten(config)), compiles)
    if result.problems:
        reason, count = max(result.problems.items(), key=lambda item: item[1])
        yield f"\nimpossible meshes: {sum(result.problems.values())}, such as (x{count}): {reason}"


def _ranked(model: CostModel, costs: Sequence[Cost], given: Mapping[str, object], compiles: int) -> str:
    """Returns the best candidate with its settings, and why the others lost.

    Args:
        model: the cost model.
        costs: the candidates, the best one first.
        given: field -> value, of the config, which the best candidate changes.
        compiles: number of candidates that were to be compiled.
    """
    best, *others = costs
    lines = ["", f"best: {best.candidate}"]
    lines += [f"  {line}" for line in table.details(model, best)]
    lines += [f"  warning: {text}" for text in table.warnings(best, model.machine)]
    if compiles and not best.compiled:
        lines.append("  warning: it fits by formula, and no compiled candidate fits. Compile more with --compile=N")
    lines += [f"  {table.command(best.candidate, given)}", "", "the others:"]
    lines += [f"  {i}: {table.why(best, cost, model)}" for i, cost in enumerate(others, 2)]
    return "\n".join(lines)


def _check(batch_size: int | str, target: HardwareTarget | None, compiles: int, calibrates: bool) -> None:
    """Raises ConfigError if the arguments of a plan do not fit together; `target` is None for the devices at hand."""
    if compiles < 0:
        raise ConfigError(f"--compile = {compiles}: allowed is a whole number from 0.")
    if calibrates and target is not None:
        raise ConfigError(
            f"--calibrate measures the devices at hand. Use --hardware=local, or leave it out for {target.text}."
        )
    if batch_size == AUTO:
        raise ConfigError(
            "train.global_batch_size = auto: a plan keeps the global batch, so it needs a number. Set "
            "--config.train.global_batch_size."
        )


def _set_up(config: Config, target: HardwareTarget | None) -> Config:
    """Sets up the devices at hand, or keeps to a CPU for an absent target; returns the config. Before JAX starts."""
    if target is None:
        return set_up_devices(config)
    targets.keep_to_cpu()
    return config


def _local(on_progress: Callable[[str], None], calibrates: bool) -> Machine:
    """Returns the devices of this process, with measured rates if there are any."""
    devices = jax.devices()
    machine = machines.of_devices(devices)
    return (calibration.calibrate if calibrates else calibration.stored)(machine, devices, on_progress)


def _compiled(
    model: CostModel,
    build: Callable[[Candidate], Program],
    precision: str,
    costs: Sequence[Cost],
    count: int,
    on_progress: Callable[[str], None],
) -> list[Cost]:
    """Returns the candidates with the first `count` compiled, in the order of `compiled_first`."""
    done: list[Cost] = []
    for i, cost in enumerate(costs[:count], 1):
        on_progress(f"compiling {i} of {min(count, len(costs))} ahead of time: {cost.candidate}")
        try:
            built = build(cost.candidate)
            done.append(model.with_compiled(cost, read(built, built.trace(1).lower().compile())))
        except (ConvoyError, jax.errors.JaxRuntimeError) as error:  # the compiler refuses what does not fit a TPU
            done.append(dataclasses.replace(cost, problem=first_line(error)))
    return compiled_first(model, precision, done, costs[count:])


def compiled_first(model: CostModel, precision: str, compiled: Sequence[Cost], others: Sequence[Cost]) -> list[Cost]:
    """Returns candidates with those that fit first, compiled ones before others, and the simplest of the fastest first.

    Args:
        model: the cost model.
        precision: that of the config; candidates in another one come after all in this one.
        compiled: the candidates that were compiled.
        others: the others, in their order.
    """
    possible = [cost for cost in compiled if not cost.problem and model.fits(cost)]
    possible.sort(key=lambda cost: (cost.candidate.precision != precision, cost.step_s))
    rest = sorted((cost for cost in compiled if cost not in possible), key=lambda cost: cost.step_s)
    return sorted(
        [*simplest_first(possible), *rest, *others],
        key=lambda cost: (bool(cost.problem), cost.candidate.precision != precision, not model.fits(cost)),
    )


def with_candidate(config: Config, candidate: Candidate) -> Config:
    """Returns a config with the mesh and the settings of a candidate, without the compilation cache."""
    draft = draft_of(config)
    for path, value in (candidate.overrides() | {"mesh.cpu_devices": None, "cache.compiled": False}).items():
        assign(draft, path, value)
    return validate(draft, f"the candidate {candidate}")


def _refusal_when_compiled(machine: Machine, compiled: Sequence[Cost]) -> str:
    """Returns why no candidate fits, of those that fit by formula and were compiled."""
    least = min(compiled, key=lambda cost: cost.bytes, default=None)
    needs = ""
    if least is not None:
        needs = f" {least.candidate} needs {size_text(least.bytes)} of the {size_text(machine.memory)} of a device."
    return (
        f"convoy plan: the best candidates for {machine.text} fit by formula, and none when compiled.{needs} Use a "
        "smaller train.global_batch_size, or more devices."
    )


def _refusal(result: SearchResult, precision: str) -> str:
    """Returns why nothing fits, and what would."""
    machine, nearest = result.model.machine, result.nearest
    if nearest is None:
        return f"convoy plan: no mesh of {machine.text} is possible: {_impossible(result)}"
    parts = ", ".join(f"{name} {size_text(size)}" for name, size in nearest.memory.items() if size)
    would = "; or ".join(changes(result, precision)) or "a smaller model"
    return (
        f"convoy plan: nothing fits {machine.text}. The least of {result.examined:,} candidates, {nearest.candidate}, "
        f"needs {size_text(nearest.bytes)} of the {size_text(machine.memory)} of a device ({parts}). It would fit "
        f"with: {would}."
    )


def _impossible(result: SearchResult) -> str:
    """Returns why no mesh is possible, and the settings with which one would be."""
    machine, choices = result.model.machine, result.choices
    sizes = divisible(machine, choices, result.model.divides)
    if not sizes:
        return "; ".join(list(result.problems)[:3]) + "."
    flags = " ".join(f"--config.{path}={size}" for path, size in sizes.items())
    fewer = fewer_devices(machine, choices)
    return (
        f"its {machine.count} devices do not divide {' and '.join(f'{x} = {choices.batches[x]}' for x in sizes)}. "
        f"Use {flags}, or fewer devices{f', such as {fewer}' if fewer > 1 else ''}."
    )
