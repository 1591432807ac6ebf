"""Tables of the measurements of a bundle, and the same as JSON."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from engine.base.formatting import aligned, number, size_text
from engine.bundles.bench import EAGER, MEMORY, TIMES, Measurement, time_text, value_text
from engine.bundles.layer_costs import Layer


def text(found: Sequence[Measurement], layers: int) -> str:
    """Returns a line for each program, and a table of the layers of each.

    Args:
        found: the measurements.
        layers: number of layers in a table; 0 for no tables.
    """
    names = (*TIMES, MEMORY)
    rows = [("entry", "program", "runs with", "batch", *names)]
    rows += [
        (one.entry, one.program, one.library, str(one.batch), *(value_text(one, name) for name in names))
        for one in found
    ]
    first = found[0]
    cores = f"core{'s' if len(first.cores) > 1 else ''} {', '.join(map(str, first.cores))}"
    lines = [f"{first.calls:,} calls on {cores}", *aligned(rows), *_comparisons(found)]
    for one in found:
        if layers and one.layers:
            lines += ["", *_layer_table(one, layers)]
    return "\n".join(lines)


def _comparisons(found: Sequence[Measurement]) -> Iterator[str]:
    """Yields how much faster the programs are than the eager model."""
    for eager in (one for one in found if one.program == EAGER):
        for one in found:
            if one.entry == eager.entry and one.program != EAGER:
                ratio = eager.seconds["p50"] / one.seconds["p50"]
                yield f"{one.entry}: {one.program} takes {1 / ratio:.2g} of the time of the eager model (p50)"


def _layer_table(found: Measurement, count: int) -> list[str]:
    total = sum(layer.seconds for layer in found.layers)
    flops, moved = sum(layer.flops for layer in found.layers), sum(layer.bytes for layer in found.layers)
    shown, rest = found.layers[:count], found.layers[count:]
    rows = [("layer", "time", "share", "FLOPs", "bytes", "operations")]
    rows += [_row(layer, total) for layer in shown]
    if rest:
        sums = [sum(getattr(layer, name) for layer in rest) for name in ("seconds", "flops", "bytes")]
        rows.append(_row(Layer(f"{len(rest)} others", (), *sums), total))
    head = f"{found.entry} {found.program}: the layers of a call, with a profiler: {time_text(total)}, "
    costs = f"{number(flops)} FLOPs, {size_text(moved)}"
    return [head + costs, *(f"  {line}" for line in aligned(rows))]


def _row(layer: Layer, total: float) -> tuple[str, ...]:
    share = f"{layer.seconds / total:.0%}" if total else "-"
    operations = ", ".join(layer.operations[:4]) + (", ..." if len(layer.operations) > 4 else "")
    return layer.name, time_text(layer.seconds), share, number(layer.flops), size_text(layer.bytes), operations


def to_json(found: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Returns the measurements, times in seconds and sizes in bytes."""
    return [dataclasses.asdict(one) for one in found]
