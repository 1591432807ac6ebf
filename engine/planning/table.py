"""The output of `convoy plan`: a table of candidates, the winner as overrides, and why the others lost."""

from collections.abc import Callable, Mapping, Sequence

from engine.base.formatting import aligned, seconds_text, size_text
from engine.parallel.memory import GPU_SHARE, MEMORY_FRACTION
from engine.planning.candidates import Candidate
from engine.planning.cost import CostModel
from engine.planning.machine import Machine
from engine.planning.memory import SAFE, Cost

GIB = 2**30
COLUMNS = ("", "mesh and settings", "GiB", "step", "ex/s", "tok/s", "MFU", "traffic of a device, by axis", "bubble")


def machine_text(machine: Machine, state: str, precision: str = "") -> list[str]:
    """Returns lines about a machine.

    Args:
        machine: the devices.
        state: a line about the model.
        precision: `train.precision` of the config.
    """
    name, several = machine.slice_name, machine.slices > 1
    slices = f", {machine.slices} {name}s of {machine.slice_size} devices" if several else ""
    share = f", {machine.share:.0%} of a GPU, as JAX allocates ({MEMORY_FRACTION})" if machine.platform == "gpu" else ""
    faster = f", {machine.peak(precision) / 1e12:.3g} in {precision}" if precision in machine.eight_bits else ""
    return [
        f"hardware: {machine.text}: {machine.count} devices{slices}, {size_text(machine.memory)} each{share}",
        f"rates: {machine.bf16 / 1e12:.3g} TFLOP/s in bfloat16, {machine.f32 / 1e12:.3g} in float32{faster}, "
        f"{machine.bandwidth / 1e9:.3g} GB/s of memory, {machine.link / 1e9:.3g} GB/s of links"
        + (f", {machine.network / 1e9:.3g} GB/s between {name}s" if several else ""),
        f"  ({machine.source})",
        state,
    ]


class Rows(str):
    """A table as text, with its cells in `rows`; the first row is the header."""

    rows: Sequence[Sequence[str]]

    def __new__(cls, rows: Sequence[Sequence[str]]):
        text = super().__new__(cls, "\n".join(aligned(rows)))
        text.rows = rows
        return text


def table(model: CostModel, costs: Sequence[Cost], peak: Callable[[str], float]) -> Rows:
    """Returns the table.

    Args:
        model: the cost model.
        costs: the rows, the best first.
        peak: returns the FLOP/s of a device in a `train.precision`, of which MFU is a share.
    """
    rows = [COLUMNS, *(_cells(i, model, cost, peak) for i, cost in enumerate(costs, 1))]
    if not model.traces.tokens:
        column = COLUMNS.index("tok/s")
        rows = [(*row[:column], *row[column + 1 :]) for row in rows]
    return Rows(rows)


def _cells(number: int, model: CostModel, cost: Cost, peak: Callable[[str], float]) -> tuple[str, ...]:
    traffic = ", ".join(f"{axis} {size_text(size)}" for axis, size in cost.traffic.items() if size)
    return (
        f"{number}{'*' if cost.compiled else ''}",
        f"{cost.candidate}, {cost.candidate.precision}",
        f"{cost.bytes / GIB:.2f} ({cost.bytes / model.machine.memory:.0%})" + ("" if model.fits(cost) else " !"),
        seconds_text(cost.step_s),
        _rate_text(model.rows / cost.step_s),
        _rate_text(model.rows * model.traces.tokens / cost.step_s),
        f"{model.mfu(cost, peak(cost.candidate.precision)):.1%}",
        traffic or "-",
        f"{cost.bubble:.0%}" if cost.bubble else "-",
    )


def _rate_text(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def details(model: CostModel, cost: Cost) -> list[str]:
    """Returns the memory and the time of a candidate by part."""
    memory = model.machine.memory
    parts = ", ".join(f"{name} {size_text(size)}" for name, size in cost.memory.items() if size)
    times = ", ".join(f"{name} {seconds_text(s)}" for name, s in cost.seconds.items() if s > 0)
    free = memory - cost.bytes
    lines = [
        f"memory of a device: {size_text(cost.bytes)} of {size_text(memory)} ({cost.bytes / memory:.0%}), "
        f"{size_text(free)} free: {parts}",
        f"time of a step: {seconds_text(cost.step_s)} +- {model.margin(cost):.0%}: {times}",
    ]
    if cost.host:
        lines.append(f"memory of the host: {size_text(cost.host)} for each device")
    return lines


def command(candidate: Candidate, given: Mapping[str, object]) -> str:
    """Returns the settings of a candidate that differ from the config, as overrides of a command line.

    Args:
        candidate: the candidate.
        given: path of a config field -> its value in the config.
    """

    def differs(path: str, value: object) -> bool:
        # An axis that is not set has size 1, except mesh.data, which takes the remaining devices.
        unset = path.startswith("mesh.") and path != "mesh.data" and given.get(path) is None
        return value not in (1, "auto") if unset else given.get(path) != value

    found = [f"--config.{path}={value}" for path, value in candidate.overrides().items() if differs(path, value)]
    return " ".join(found) or "(the config has these settings)"


def why(winner: Cost, other: Cost, model: CostModel) -> str:
    """Returns why a candidate lost against the winner: the part of its time that is longest in comparison."""
    if not model.fits(other):
        return f"needs {size_text(other.bytes)}, which does not fit"
    if other.candidate.precision != winner.candidate.precision:
        return "another precision, which rounds differently; not chosen without train.precision"
    longer = {name: s - winner.seconds.get(name, 0.0) for name, s in other.seconds.items()}
    name = max(longer, key=lambda part: longer[part])
    if other.step_s <= winner.step_s * 1.02:
        if winner.compiled and not other.compiled:
            return "by formula alone, which leaves out what the compiler adds: compile more with --compile=N"
        return "as fast, and less simple"
    reasons = {
        "compute": "computes longer" + (" (recomputation)" if other.candidate.remat != "none" else ""),
        "exposed traffic": f"waits longer for {max(other.exposed, key=lambda a: other.exposed[a], default='traffic')}",
        "bubble": "stages wait",
        "host traffic": "waits for the memory of the host",
        "update": "its optimizer moves more bytes on each device",
        "new memory": "needs more memory in a step, which the operating system gives anew each time",
        "dispatch": "the host dispatches more often",
    }
    return f"{reasons[name]}: {seconds_text(longer[name])} more"


def warnings(cost: Cost, machine: Machine) -> list[str]:
    """Returns what to know about a candidate."""
    found = []
    if cost.bytes > 0.8 * machine.memory:
        found.append(f"it needs more than 80 % of the memory (limit of a plan: {SAFE:.0%})")
    if machine.platform == "gpu" and cost.bytes > SAFE * GPU_SHARE / machine.share * machine.memory:
        found.append(f"the job needs {MEMORY_FRACTION}={machine.share:.3g}, too: JAX allocates {GPU_SHARE:.0%} without")
    if cost.seconds.get("exposed traffic", 0.0) > 0.5 * cost.step_s:
        found.append("it waits for the network in more than half of the time: fewer devices would be nearly as fast")
    split = any(cost.candidate.axes[axis] > 1 for axis in ("tensor", "context", "pipeline"))
    if machine.platform == "cpu" and split and not cost.compiled:
        found.append("on CPUs the formula is too low for tensor, context and pipeline: use --compile")
    if not machine.measured:
        what = "the time is" if cost.compiled else "time and order are"
        found.append(f"{what} by formula, with rates that were not measured")
    return found
