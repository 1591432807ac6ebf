"""What training would run into with a dataset, and what would make reading it faster."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.base.host import usable_cores
from engine.data.source import BaseSource
from engine.datasets.statistics import Statistics

MANY = 0.25  # share of the time of reading from which a stage is worth a sentence
SMALL_BYTES = 16 << 10  # an example for which a separate read of a file is expensive
FAST = 1e-4  # seconds per example in one process that need no advice: 10,000 examples/s
RARE = 0.01  # share of a class that is pointed out


def notes(source: BaseSource, found: Statistics) -> list[str]:
    """Returns sentences about fields that training would refuse, convert, or learn nothing from."""
    lines = []
    ragged = source.defines("shape_specs")
    for path, field in found.fields.items():
        if len(field.shapes) > 1 and field.dtype != "text" and not ragged:
            how = (
                "Pad, bucket or pack it (engine.Padded, engine.Bucketed, engine.Packed)"
                if field.lengths()
                else "Crop or pad it"
            )
            lines.append(f"{path} has {len(field.shapes)} different shapes, and a batch needs one. {how}.")
        if field.dtype in ("int64", "uint64") and field.minimum is not None and field.maximum is not None:
            limits = np.iinfo(np.int32 if field.dtype == "int64" else np.uint32)
            if not (limits.min <= field.minimum and field.maximum <= limits.max):
                lines.append(
                    f"{path} has values from {field.minimum} to {field.maximum}, which do not fit {limits.dtype}, the "
                    "type on the devices. Shift or rescale it in the source, or set JAX_ENABLE_X64=1."
                )
        if field.not_finite:
            lines.append(f"{path} is infinite or not a number in {field.not_finite} examples. Mask or repair them.")
        if field.is_constant() and field.dtype != "text":
            lines.append(f"{path} is the same in all examples, so that a model learns nothing from it.")
        labels = field.labels()
        if labels and min(labels.values()) < RARE * sum(labels.values()):
            rare = [value for value in sorted(labels) if labels[value] < RARE * sum(labels.values())]
            lines.append(f"{path}: {len(rare)} of {len(labels)} classes have less than {RARE:.0%} of the labels.")
    return lines


def advice(found: Statistics, throughput: Mapping[str, Any]) -> list[str]:
    """Returns sentences about what would make reading faster, the largest gain first."""
    stages: dict[str, float] = dict(throughput["stages_s"])
    each, cores = sum(stages.values()), usable_cores()
    if not each or not found.sizes:
        return []
    lines = []
    if each < FAST:
        lines.append(f"one process reads {1 / each:,.0f} examples/s, which is enough for most models.")
    for name, seconds in sorted(stages.items(), key=lambda item: -item[1]):
        if seconds >= MANY * each and each >= FAST:
            lines.append(_STAGES[name](found, throughput).format(share=f"{seconds / each:.0%}", cores=cores))
    wide = [path for path, field in found.fields.items() if field.dtype in ("float64", "int64", "uint64")]
    if wide and each >= FAST:
        lines.append(
            f"{', '.join(wide[:3])} {'is' if len(wide) == 1 else 'are'} stored in 64 bits, and the devices use 32. "
            "32 bits halve what is read and stacked."
        )
    return lines


def _read(found: Statistics, throughput: Mapping[str, Any]) -> str:
    waits = throughput["waiting_s"] > 0.5 * throughput["stages_s"]["read"]
    total, count = sum(size * n for size, n in found.sizes.items()), sum(found.sizes.values())
    if not waits:
        return (
            "reading takes {share} of the time, and most of it is computation. Use data.workers={cores}, or store "
            "what is computed with convoy data write."
        )
    text = "reading takes {share} of the time, most of it waiting for storage: use more data.threads, or a local disk."
    if total / count < SMALL_BYTES:
        text += " Examples are small: larger files, records or row groups need fewer reads (convoy data write)."
    return text


def _decode(found: Statistics, throughput: Mapping[str, Any]) -> str:
    return (
        "decoding takes {share} of the time: use data.workers={cores} (processes), a decoder that releases the GIL, or "
        "store what is decoded, at the size that the model needs, with convoy data write."
    )


def _transform(found: Statistics, throughput: Mapping[str, Any]) -> str:
    return (
        "the transform takes {share} of the time: use data.workers={cores}, NumPy over whole arrays instead of loops, "
        "or move its deterministic part into the dataset with convoy data write."
    )


def _collate(found: Statistics, throughput: Mapping[str, Any]) -> str:
    return (
        "stacking takes {share} of the time: store smaller types (uint8 instead of float32) and fewer fields, and "
        "convert on the device."
    )


_STAGES = {"read": _read, "decode": _decode, "transform": _transform, "collate": _collate, "transfer": _collate}
