"""Reads and writes adapters in the format of Hugging Face's PEFT: `adapter_model.safetensors` and its config.

The modules have the names that the `pretrained` tables of the model give them (`engine.hub.Names`).
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from engine.adapters.modules import applied_to
from engine.adapters.products import Applied
from engine.adapters.quantized import kernel_of
from engine.base import json_text
from engine.base.errors import CheckpointError
from engine.base.files import read_text
from engine.checkpoint.export import write_safetensors
from engine.hub.matching import Array, arrays_of
from engine.hub.weights import Weights
from engine.run import atomic

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
SUFFIX = ".weight"
MATRICES = {"a": ".lora_A.weight", "b": ".lora_B.weight", "magnitude": ".lora_magnitude_vector"}
"""Part of an adapter -> end of its name there."""
SETTINGS = {"r": "rank", "lora_alpha": "alpha", "use_rslora": "rslora", "use_dora": "dora"}
"""Setting there -> setting of `Adapter`. Both must be equal when an adapter is read."""
SHOWN = 8  # names in an error


@dataclasses.dataclass(frozen=True)
class _Layer:
    """One kernel there: its name, its owner and number of leading index here, and the adapter."""

    name: str
    path: str
    index: int
    module: Any
    one: Applied

    @property
    def window(self) -> tuple[int, ...]:
        """Window of a convolution; () for a dense layer."""
        return tuple(self.module.kernel_size) if isinstance(self.module, nnx.Conv) else ()

    def key(self, part: str) -> str:
        """Returns the name of a part of the adapter there."""
        return f"{PREFIX}{self.name}{MATRICES[part]}"

    def norms(self) -> np.ndarray:
        """Returns the norm of each column of the kernel `[out]`, in float32."""
        matrix = np.asarray(self.one.matrix(self.module), np.float32)
        return np.linalg.norm(matrix.reshape(-1, *matrix.shape[-2:])[self.index], axis=0)

    def there(self, part: str, value: np.ndarray) -> np.ndarray:
        """Returns a part, of this layer alone, in the order of dimensions there."""
        ones = (1,) * len(self.window)
        if part == "magnitude":
            magnitude = value + self.norms()
            return magnitude.reshape(1, -1, *ones) if ones else magnitude
        if part == "a" and ones:
            whole = value.reshape(*self.window, -1, value.shape[-1])
            return np.moveaxis(whole, (-1, -2), (0, 1))
        return value.T.reshape(*value.T.shape, *(ones if part == "b" else ()))

    def here(self, part: str, value: np.ndarray) -> np.ndarray:
        """Returns the reverse of `there`."""
        if part == "magnitude":
            return value.reshape(-1) - self.norms()
        if part == "a" and self.window:
            return np.moveaxis(value, (0, 1), (-1, -2)).reshape(-1, value.shape[0])
        return value.reshape(*value.shape[:2]).T


def save_peft(
    model: nnx.Module,
    folder: str | os.PathLike[str],
    name: str | None = None,
    like: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Writes an adapter of a model in the format of PEFT; returns the names of the adapted modules there.

    `peft.PeftModel.from_pretrained(base, folder)` reads it. For one process: all values are on this host.

    Args:
        model: a model with adapters, such as `engine.load(run).model`. Its `pretrained` tables give the names.
        folder: gets adapter_model.safetensors and adapter_config.json.
        name: of the adapter; needed if the model has several.
        like: the safetensors of the other program's model. They decide where `pretrained` gives several prefixes.

    Raises:
        CheckpointError: PEFT has no place for an adapter, or a file cannot be written.
    """
    name, adapter = _named(model, name)
    stored = {} if like is None else dict(Weights(Path(like), "save_peft").arrays)
    layers = list(_layers(model, name, stored, "save_peft"))
    arrays = {
        layer.key(part): np.ascontiguousarray(layer.there(part, _part(layer, part)))
        for layer in layers
        for part in layer.one.parts
        if part in MATRICES
    }
    modules = sorted({layer.name for layer in layers})
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_safetensors(arrays, Path(folder) / WEIGHTS, {"format": "pt"})
    alpha = int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None if like is None else str(like),
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.rslora,
        "use_dora": adapter.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": modules,
    }
    atomic.write_text(Path(folder) / CONFIG, json_text.dumps(config, indent=2) + "\n")
    return modules


def load_peft(model: nnx.Module, folder: str | os.PathLike[str], name: str | None = None) -> str:
    """Sets an adapter of a model to one that PEFT has written; returns a sentence about it.

    Args:
        model: a model with adapters of the same settings, whose kernels have their values already.
        folder: has adapter_model.safetensors and adapter_config.json.
        name: of the adapter; needed if the model has several.

    Raises:
        CheckpointError: the files are missing or damaged, or their adapter differs from that of the model.
    """
    name, adapter = _named(model, name)
    config = _config(Path(folder) / CONFIG)
    found = {own: config.get(there) for there, own in SETTINGS.items()}
    if text := ", ".join(f"{own}={value!r}" for own, value in found.items() if value != getattr(adapter, own)):
        raise CheckpointError(f"load_peft: {folder}: has {text}, unlike adapter {name}. Give `adapted` these settings.")
    weights = Weights(Path(folder) / WEIGHTS, "load_peft")
    end = MATRICES["a"]
    stored = {
        f"{key.removeprefix(PREFIX).removesuffix(end)}{SUFFIX}": x for key, x in weights.arrays.items() if end in key
    }
    layers = list(_layers(model, name, stored, "load_peft"))
    wanted = {layer.key(part) for layer in layers for part in layer.one.parts if part in MATRICES}
    if wanted != weights.arrays.keys():
        missing, more = sorted(wanted - weights.arrays.keys()), sorted(weights.arrays.keys() - wanted)
        raise CheckpointError(
            f"load_peft: {folder} does not fit adapter {name}. Only here: {_listed(missing)}. Only there: "
            f"{_listed(more)}. Change `match`, or the names in `pretrained`."
        )
    _set(weights, layers)
    return f"read adapter {name} of {len(layers)} kernels from {folder}"


def _set(weights: Weights, layers: list[_Layer]) -> None:
    """Sets the parts of the adapters to those of the file."""
    for path in dict.fromkeys(layer.path for layer in layers):
        same = [layer for layer in layers if layer.path == path]
        first = same[0]
        for part in first.one.parts:
            if part not in MATRICES:
                continue
            variable = vars(first.module)[first.one.attribute(part)]
            old = variable.get_value()
            found = [layer.here(part, _read(weights, layer, part)) for layer in same]
            if any(x.size * len(same) != old.size for x in found):
                there = f"{first.key(part)} is {weights.arrays[first.key(part)]}"
                raise CheckpointError(f"load_peft: {path}: {part} is {list(old.shape)} here, {there}.")
            value = np.stack(found).reshape(old.shape).astype(old.dtype)
            variable.set_value(jax.device_put(value, old.sharding))


def _read(weights: Weights, layer: _Layer, part: str) -> np.ndarray:
    shape = weights.arrays[layer.key(part)].shape
    expected = {"a": 2 + len(layer.window), "b": 2 + len(layer.window)}.get(part, len(shape))
    if len(shape) != expected:
        raise CheckpointError(f"load_peft: {layer.key(part)} has {len(shape)} dimensions, here it has {expected}.")
    return np.asarray(weights.read(layer.key(part), [slice(0, size) for size in shape])).astype(np.float32)


def _part(layer: _Layer, part: str) -> np.ndarray:
    """Returns a part of the adapter, of this layer alone."""
    value = np.asarray(layer.one.part(layer.module, part), np.float32)
    dimensions = 1 if part == "magnitude" else 2
    return value.reshape(-1, *value.shape[value.ndim - dimensions :])[layer.index]


def _named(model: nnx.Module, name: str | None) -> tuple[str, Any]:
    """Returns the name and the settings of an adapter of a model."""
    found = {one.name: one.adapter for _, module in nnx.iter_modules(model) for one in applied_to(module)}
    if not found:
        raise CheckpointError("The model has no adapters. Wrap its Task with engine.adapters.adapted.")
    if (name is None and len(found) > 1) or (name is not None and name not in found):
        raise CheckpointError(f"name = {name!r}: the model has the adapters {', '.join(found)}. Name one of them.")
    name = next(iter(found)) if name is None else name
    return name, found[name]


def _layers(model: nnx.Module, name: str, stored: Mapping[str, Any], where: str) -> Iterator[_Layer]:
    """Yields the kernels of an adapter, by layer, with their names there."""
    owners = {
        "/".join(map(str, (*path, one.kernel))): (module, one)
        for path, module in nnx.iter_modules(model)
        for one in applied_to(module)
        if one.name == name
    }
    specs: Any = {path: kernel_of(module, one.kernel) for path, (module, one) in owners.items()}
    for array in arrays_of(specs, model, {}, stored):
        module, one = owners[array.path]
        for index, there in enumerate(_names(array, module, where)):
            yield _Layer(there, array.path, index, module, one)


def _names(array: Array, module: Any, where: str) -> Iterator[str]:
    """Yields the names of the modules there, one for each layer of a stack."""
    window = len(module.kernel_size) if isinstance(module, nnx.Conv) else 0
    grouped = isinstance(module, nnx.Conv) and module.feature_group_count > 1
    count = math.prod(array.leading)
    fits = len(array.shape) == 2 + window and not grouped and (array.origin.is_stacked or count == 1)
    for layer in range(count):
        piece, *others = array.origin.of_layer(layer)
        if not fits or others or piece.count > 1 or not piece.name.endswith(SUFFIX):
            raise CheckpointError(
                f"{where}: {array.path} {list(array.leading + array.shape)} is {array.origin} there. PEFT has adapters "
                "of whole dense layers and of convolutions without groups alone. Use an adapter that matches only "
                "these, or merge it: engine.adapters.merged."
            )
        yield piece.name.removesuffix(SUFFIX)


def _config(path: Path) -> dict[str, Any]:
    """Returns a config of PEFT whose settings are known here."""
    try:
        config = json_text.parse(read_text(path), {str: object})
    except (OSError, ValueError) as error:
        raise CheckpointError(f"load_peft: {path}: cannot be read as a config of PEFT ({error}).") from error
    plain = {"peft_type": ("LORA",), "bias": ("none",), "rank_pattern": ({}, None), "alpha_pattern": ({}, None)}
    plain |= {"modules_to_save": ([], None), "layer_replication": (None,)}
    for setting, allowed in plain.items():
        if setting in config and config[setting] not in allowed:
            raise CheckpointError(f"load_peft: {path}: {setting} = {config[setting]!r} is not supported.")
    defaults = {"use_rslora": False, "use_dora": False, "r": 8, "lora_alpha": 8}
    return {**defaults, **config}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}" or "none"
