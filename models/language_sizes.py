"""Sizes of published language models that `LanguageModel` computes, by their names on Hugging Face: Llama 3, Qwen 3."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine import TaskError, layers

from .decoder import LanguageModel

_LLAMA_3 = dict(vocabulary=128_256, kv_heads=8, norm_epsilon=1e-5, rope_theta=500_000.0)
_LLAMA_3_1 = dict(**_LLAMA_3, rope_scaling=layers.RotaryScaling(factor=8.0))
_LLAMA_3_2 = dict(**_LLAMA_3, rope_scaling=layers.RotaryScaling(factor=32.0), tied=True)
_QWEN_3 = dict(vocabulary=151_936, kv_heads=8, head_dim=128, qk_norm=True, rope_theta=1_000_000.0)

SIZES: Mapping[str, Mapping[str, Any]] = {
    "Meta-Llama-3-8B": dict(**_LLAMA_3, width=4096, hidden=14336, depth=32, heads=32),
    "Llama-3.1-8B": dict(**_LLAMA_3_1, width=4096, hidden=14336, depth=32, heads=32),
    "Llama-3.1-70B": dict(**_LLAMA_3_1, width=8192, hidden=28672, depth=80, heads=64),
    "Llama-3.2-1B": dict(**_LLAMA_3_2, width=2048, hidden=8192, depth=16, heads=32),
    "Llama-3.2-3B": dict(**_LLAMA_3_2, width=3072, hidden=8192, depth=28, heads=24),
    "Qwen3-0.6B": dict(**_QWEN_3, width=1024, hidden=3072, depth=28, heads=16, tied=True),
    "Qwen3-1.7B": dict(**_QWEN_3, width=2048, hidden=6144, depth=28, heads=16, tied=True),
    "Qwen3-4B": dict(**_QWEN_3, width=2560, hidden=9728, depth=36, heads=32, tied=True),
    "Qwen3-8B": dict(**_QWEN_3, width=4096, hidden=12288, depth=36, heads=32),
    "Qwen3-14B": dict(**_QWEN_3, width=5120, hidden=17408, depth=40, heads=40),
    "Qwen3-32B": dict(**_QWEN_3, width=5120, hidden=25600, depth=64, heads=64),
    # Of bytes, to try a config without weights.
    "tiny": dict(
        vocabulary=256, width=64, hidden=192, depth=2, heads=4, kv_heads=2, head_dim=32, qk_norm=True, tied=True
    ),
}
"""Name -> arguments of `LanguageModel`, those of config.json at huggingface.co/meta-llama and huggingface.co/Qwen."""
FILE = "config.json"
_ARGUMENTS: Mapping[str, str] = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "hidden": "intermediate_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "tied": "tie_word_embeddings",
    "norm_epsilon": "rms_norm_eps",
}
_ONLY: Mapping[str, Sequence[Any]] = {
    "model_type": ("llama", "qwen3"),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "rope_type": ("default", "llama3"),
    "partial_rotary_factor": (1.0,),
}


def language_model(size: str = "tiny", dropout: float = 0.0) -> LanguageModel:
    """Returns the Task of a published model.

    Args:
        size: a name of `SIZES`, or a folder with the config.json of a Llama or a dense Qwen 3.
        dropout: rate.

    Raises:
        TaskError: there is no such name or file, or the file is of another model.
    """
    if size in SIZES:
        return LanguageModel(**SIZES[size], dropout=dropout)
    file = Path(size).expanduser() / FILE
    try:
        return LanguageModel(**_arguments(json.loads(file.read_text(encoding="utf-8"))), dropout=dropout)
    except FileNotFoundError:
        raise TaskError(
            f"task.size = {size}: no such name, and no {file}. Names: {', '.join(SIZES)}. Or give a folder with {FILE}."
        ) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TaskError(f"task.size = {size}: {file} cannot be read ({error}). Copy or download it again.") from error
    except KeyError as error:
        raise TaskError(f"task.size = {size}: {file} has no entry {error}, which a language model needs.") from None
    except _OtherModel as error:
        raise TaskError(f"task.size = {size}: {file} {error}") from None


def config_json(task: LanguageModel, length: int | None = None) -> str:
    """Returns the config.json with which transformers loads what `engine.hub.save` writes for a model.

    Args:
        task: the Task of the model.
        length: most positions of a row for which the model is meant; None: what transformers assumes.

    Raises:
        TaskError: transformers has no such model.
    """
    if not isinstance(task, LanguageModel) or hasattr(task, "experts"):
        raise TaskError(
            f"config_json: found {type(task).__name__}. Allowed: LanguageModel. An export to a file, "
            "--out=FILE.safetensors, needs no config.json."
        )
    if task.base_depth not in (None, task.depth):
        raise TaskError(
            f"config_json: found base_depth={task.base_depth} with depth={task.depth}. The models of transformers do "
            "not multiply residual branches; train with base_depth=None."
        )
    kind = "qwen3" if task.qk_norm else "llama"
    scaling = {} if task.rope_scaling is None else dataclasses.asdict(task.rope_scaling)
    entries = {
        "model_type": kind,
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "hidden_act": "silu",
        **{there: getattr(task, name) for name, there in _ARGUMENTS.items()},
        "num_key_value_heads": task.kv_heads or task.heads,
        "head_dim": task.head_dim or task.width // task.heads,
        **({} if length is None else {"max_position_embeddings": length}),
        "rope_parameters": {"rope_type": "llama3" if scaling else "default", "rope_theta": task.rope_theta, **scaling},
    }
    return json.dumps(entries, indent=2) + "\n"


class _OtherModel(Exception):
    """A setting that `LanguageModel` does not have."""


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `LanguageModel` for the content of config.json."""
    rotations = config.get("rope_parameters") or {**config, **(config.get("rope_scaling") or {})}
    kind = rotations.get("rope_type", rotations.get("type", "default"))
    settings = {**config, **rotations, "rope_type": kind}
    for name, allowed in _ONLY.items():
        if (found := settings.get(name, allowed[0])) not in allowed:
            raise _OtherModel(f"has {name} = {found!r}. Allowed: {' or '.join(map(repr, allowed))}.")
    scaling = [field.name for field in dataclasses.fields(layers.RotaryScaling)]
    return {
        **{name: config[there] for name, there in _ARGUMENTS.items()},
        "head_dim": config.get("head_dim"),
        "qk_norm": config["model_type"] == "qwen3",
        "rope_theta": float(rotations.get("rope_theta", 10_000.0)),
        "rope_scaling": layers.RotaryScaling(**{n: rotations[n] for n in scaling}) if kind == "llama3" else None,
    }
