"""Scores all candidates of a config on a machine by formula, memory first, and ranks them."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from engine.base.errors import ConvoyError
from engine.compile.options import MAX_UNROLLED_STEPS
from engine.compile.program import Program
from engine.config.schema import Config, Evaluation, Sharding, Train
from engine.config.setting import AUTO
from engine.layers.rematerialization import policies
from engine.parallel.layout import NAMED
from engine.parallel.memory import MEMORY_FRACTION
from engine.parallel.rules import RULES, axes_of
from engine.planning.candidates import Attention, Candidate, Choices, meshes, settings
from engine.planning.cost import CostModel
from engine.planning.machine import Machine
from engine.planning.memory import SAFE, Cost
from engine.planning.tracing import Traces
from engine.training.accumulation import check_dropout
from engine.training.update import has_own_update

SCHEDULES, REPEATS = ("gpipe", "1f1b"), (1, 2, 4)
STEPS_PER_DISPATCH = (1, 2, 4, 8, 16, 32, 64)
DISPATCH_SHARE = 0.02  # K is the least that brings the time of the dispatch below this share of a step
LARGEST_SHARE = 0.95
"""Share of the memory of a GPU that JAX may allocate; the rest is for the driver and for libraries."""
SIMPLE = 0.02
"""Relative difference of times below which the simpler of two candidates wins."""


@dataclasses.dataclass
class SearchResult:
    """The scored candidates of a config on a machine."""

    model: CostModel
    choices: Choices
    fitting: list[Cost]  # the fastest first
    nearest: Cost | None  # the candidate in the config's precision that needs least memory, if none of them fits
    examined: int
    problems: Mapping[str, int]  # why meshes are impossible -> number of meshes


def choices_of(
    program: Program, train: Train, sharding: Sharding, evaluations: Mapping[str, Evaluation], machine: Machine
) -> Choices:
    """Returns what the model of a config allows.

    Args:
        program: its program on one device, which has been traced.
        train: config section `train`.
        sharding: config section `sharding`.
        evaluations: config sections of the evaluations, by name.
        machine: the devices.
    """
    model, used, rules = program.spec.model, program.spec.layout.used, {**RULES, **sharding.rules}
    mapped = {axis for names in model.names.values() for name in names for axis in axes_of(rules.get(name or ""))}
    axes = ["data", "fsdp"]
    axes += [axis for axis in ("expert", "context", "pipeline") if axis in used]
    axes += ["tensor"] if "tensor" in mapped else []
    named = sorted(name.removeprefix(NAMED) for name in used if name.startswith(NAMED))
    offloads = machine.platform != "cpu"
    remats = policies(used)
    if offloads and named and "remat" in used:
        remats.append(f"offload:{','.join(named)}")
    if train.remat not in (AUTO, *remats) and (offloads or not train.remat.startswith("offload")):
        remats.append(train.remat)
    faster = machine.bf16 > machine.f32 or machine.platform == "tpu"
    precisions = dict.fromkeys((train.precision, *(("bfloat16",) if faster else ())))
    depths = [model.params[path].shape[0] for path in model.stacked]
    return Choices(
        train.global_batch_size,
        axes,
        math.gcd(*depths) or 1,
        remats,
        tuple(precisions),
        accumulates=_accumulates(program, train.approximate_accumulation),
        offloads=offloads,
        repeats=sorted({*REPEATS, sharding.repeats}),
        attentions=Attention.all_of(used),
        schedules=("gpipe",) if has_own_update(program.spec.task) else SCHEDULES,
        evaluations={name: part.batch_size for name, part in evaluations.items() if part.batch_size},
        # Batches of several shapes limit the steps of a dispatch, and the config has a number that its data allows.
        steps=STEPS_PER_DISPATCH if len(program.shape_shares) == 1 else (train.steps_per_dispatch,),
        unrolled=MAX_UNROLLED_STEPS if machine.platform == "cpu" and program.spec.unroll else None,
    )


def _accumulates(program: Program, approximate: bool) -> bool:
    """Returns whether the step can have microbatches, and their result is that of the whole batch or may differ."""
    spec = program.spec
    if has_own_update(spec.task) or approximate:
        return not has_own_update(spec.task)
    try:
        check_dropout(spec.model, 2)
    except ConvoyError:
        return False
    return not spec.model.model_state and not spec.model.rng_state


def cost_model(
    program: Program,
    sharding: Sharding,
    prefetch: int | str,
    machine: Machine,
    precisions: Sequence[str],
    on_progress: Callable[[str], None] = lambda text: None,
) -> CostModel:
    """Returns the cost model of a config on a machine, for candidates in these precisions.

    Args:
        program: the program of the config on one device.
        sharding: config section `sharding`.
        prefetch: `data.prefetch`.
        machine: the devices.
        precisions: values of train.precision.
        on_progress: receives a line before each trace.
    """
    balance = {name: machine.peak(name) / machine.fused_bandwidth for name in (*precisions, "bfloat16")}
    rows = max(1, min(program.batch_size // machine.count, 64))
    traces = Traces(program, sharding, prefetch, balance, rows, on_progress, machine.product_share)
    return CostModel(traces, machine)


def rank(
    program: Program, config: Config, machine: Machine, on_progress: Callable[[str], None] = lambda text: None
) -> SearchResult:
    """Returns all candidates of a config that fit a machine, the fastest first.

    Args:
        program: the program of the config on one device.
        config: the config.
        machine: the devices.
        on_progress: receives a line before each part of the work.
    """
    choices = choices_of(program, config.train, config.sharding, config.evaluations, machine)
    model = cost_model(program, config.sharding, config.data.prefetch, machine, choices.precisions, on_progress)
    fitting: list[Cost] = []
    nearest: Cost | None = None
    problems: dict[str, int] = {}
    examined = 0
    on_progress("scoring candidates by formula")
    for mesh in meshes(machine, choices):
        for candidate in settings(mesh, choices):
            examined += 1
            if examined % 20_000 == 0:
                on_progress(f"scoring by formula: {examined:,} candidates, {len(fitting):,} fit")
            found = model.memory(candidate)
            if found.problem:
                problems[found.problem] = problems.get(found.problem, 0) + 1
                break
            if model.fits(found):
                fitting.append(_dispatched(model, choices, model.cost(candidate, found)))
            elif candidate.precision == config.train.precision:
                nearest = found if nearest is None or found.bytes < nearest.bytes else nearest
    on_progress(f"scored {examined:,} candidates by formula, {len(fitting):,} fit")
    fitting.sort(key=lambda cost: (cost.candidate.precision != config.train.precision, cost.step_s, cost.bytes))
    return SearchResult(model, choices, simplest_first(fitting), nearest, examined, problems)


def _dispatched(model: CostModel, choices: Choices, cost: Cost) -> Cost:
    """Sets the steps per dispatch: the least with which the host's time does not matter.

    It is smaller if the batches would not fit into the memory of a device, or the engine would not compile them.
    """
    step = cost.step_s - cost.seconds["dispatch"]
    for k in choices.steps:
        candidate = dataclasses.replace(cost.candidate, steps_per_dispatch=k)
        more = {**cost.memory, "batch": model.batches(candidate)}
        fits = choices.allows(candidate.accumulate, k) and model.fits(dataclasses.replace(cost, memory=more))
        if k > choices.steps[0] and not fits:
            break
        cost.candidate, cost.memory = candidate, more
        cost.seconds["dispatch"] = model.dispatch / k
        if model.dispatch / k <= DISPATCH_SHARE * step:
            break
    return cost


def simplest_first(costs: list[Cost]) -> list[Cost]:
    """Moves the simplest of the candidates that are as fast as the first to the front."""
    if not costs:
        return costs
    first = costs[0]
    near = [
        cost
        for cost in costs
        if cost.step_s <= first.step_s * (1 + SIMPLE) and cost.candidate.precision == first.candidate.precision
    ]
    best = min(near, key=lambda cost: (_complexity(cost.candidate), cost.step_s))
    return [best, *(cost for cost in costs if cost is not best)]


def _complexity(candidate: Candidate) -> float:
    """Returns the number of settings that differ from plain data parallelism; FSDP counts half."""
    axes = candidate.axes
    return (
        sum(axes[axis] > 1 for axis in ("tensor", "context", "pipeline", "expert"))
        + (axes["fsdp"] > 1) / 2
        + (candidate.context != "ring")
        + (candidate.schedule != "gpipe")
        + (candidate.repeats > 1)
        + (candidate.remat != "none")
        + (candidate.accumulate > 1)
        + candidate.zero1
        + candidate.offload_optimizer
    )


def different(costs: Sequence[Cost], count: int) -> list[Cost]:
    """Returns at most `count` candidates, the fastest first, that differ in how they split the model.

    Further meshes, which differ in data and fsdp alone, fill up what is left.
    """
    models: dict[tuple, Cost] = {}
    all_meshes: dict[tuple, Cost] = {}
    for cost in costs:
        candidate = cost.candidate
        model = tuple(candidate.axes[axis] for axis in ("pipeline", "expert", "context", "tensor"))
        models.setdefault((model, candidate.precision), cost)
        all_meshes.setdefault((candidate.sizes, candidate.between, candidate.precision), cost)
    chosen = [*list(models.values())[: max(count - 2, 1)]]
    chosen += [cost for cost in all_meshes.values() if cost not in chosen][: count - len(chosen)]
    place = {id(cost): i for i, cost in enumerate(costs)}
    return sorted(chosen, key=lambda cost: place[id(cost)])


def changes(ranking: SearchResult, precision: str) -> list[str]:
    """Returns the nearest changes with which a candidate in this precision would fit, where none does."""
    model, machine = ranking.model, ranking.model.machine
    choices = dataclasses.replace(ranking.choices, precisions=(precision,))
    found = [f"train.precision={ranking.fitting[0].candidate.precision}"] if ranking.fitting else []
    if machine.platform == "gpu" and machine.share < LARGEST_SHARE:
        whole = round(machine.memory / machine.share * LARGEST_SHARE)
        if ranking.nearest is not None and ranking.nearest.bytes <= SAFE * whole:
            found.append(f"{MEMORY_FRACTION}={LARGEST_SHARE} in the environment of the plan and of the job")
    for factor in (2, 4, 8, 16, 32, 64):
        rows = choices.rows // factor
        if rows and _least(model, machine, dataclasses.replace(choices, rows=rows), rows):
            found.append(f"train.global_batch_size={rows}")
            break
    for factor in (2, 4, 8, 16, 32, 64):
        larger = dataclasses.replace(machine, count=machine.count * factor, torus=())
        rows = max(choices.rows, larger.count)
        if larger.platform == "tpu":
            larger = dataclasses.replace(larger, slice_size=larger.count)
        if _least(model, larger, dataclasses.replace(choices, rows=rows), rows):
            more = f" with train.global_batch_size={rows}" if rows != choices.rows else ""
            found.append(f"{larger.count} devices of the same kind{more}")
            break
    if ranking.nearest is not None:
        found.append(f"devices with {math.ceil(ranking.nearest.bytes / SAFE / 2**30)} GiB of memory or more")
    return found


def _least(model: CostModel, machine: Machine, choices: Choices, rows: int) -> bool:
    """Returns whether a candidate for other devices or another batch fits."""
    other = CostModel(model.traces, machine)
    other.rows = rows
    return any(
        other.fits(other.memory(candidate))
        for mesh in meshes(machine, choices)
        for candidate in settings(mesh, choices)
    )
