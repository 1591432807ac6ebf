"""Llama and Qwen 3 with weights, logits and gradients of transformers as golden numbers; sizes of published models.

Written by: python -m benchmarks.references --only=language --golden=tests/models/golden
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from safetensors.numpy import load_file

import engine
from benchmarks.references import language
from convoy_zoo.models.decoder import LanguageModel
from convoy_zoo.models.language_sizes import SIZES, config_json, language_model
from convoy_zoo.models.moe_decoder import MoeLanguageModel
from engine import TaskError, hub
from engine.checkpoint.warm_start import read_weights
from engine.config import load
from engine.config.schema import Init, MeshSpec
from tests import runs, zoo

FOLDER = Path(__file__).parent / "golden" / "language"
TINY = language.MODELS[: language.TINY]


@pytest.mark.parametrize("item", TINY)
def test_logits_and_gradients_equal_those_of_transformers(item):
    rows = list(language.compared(FOLDER, item))
    assert len(rows) == 5
    assert [f"{row.item}: {row.largest_difference}" for row in rows if not row.agrees] == []


@pytest.mark.parametrize("item", TINY)
def test_weights_are_written_as_they_were_read(item, tmp_path):
    names = hub.save(language.read(FOLDER / item), tmp_path / "out.safetensors")
    wanted, found = load_file(FOLDER / item / "model.safetensors"), load_file(tmp_path / "out.safetensors")
    assert names == sorted(wanted) == sorted(found)
    assert [name for name in names if found[name].tobytes() != wanted[name].tobytes()] == []
    assert [name for name in names if found[name].shape != wanted[name].shape] == []


def test_layers_are_read_onto_a_mesh():
    """Each device reads its part of the stacked layers; the whole arrays are those of one device."""
    folder = FOLDER / "tiny-qwen3"
    task, one = language_model(str(folder)), language.read(folder)
    names = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), np.int32) | {"weight": np.float32}
    example = {name: jax.ShapeDtypeStruct((8,), dtype) for name, dtype in names.items()}
    params = zoo.program(task, mesh=MeshSpec(fsdp=2, tensor=4), batch_size=8, example=example).abstract_state.params
    sharding = params["stack/layers/attention/query/kernel"].sharding
    assert isinstance(sharding, NamedSharding) and {"fsdp", "tensor"} <= set(jax.tree.leaves(tuple(sharding.spec)))
    module = nnx.eval_shape(lambda: task.build(nnx.Rngs(0)))
    found = read_weights(
        Init(checkpoint=f"hf:{folder}/model.safetensors"), {"params": params, "carried": {}}, {}, module
    ).params
    wanted = {"/".join(map(str, path)): x.get_value() for path, x in nnx.to_flat_state(nnx.state(one, nnx.Param))}
    assert found.keys() == wanted.keys() and found["stack/layers/attention/query_norm/scale"].shape == (2, 4)
    assert all(found[name].sharding == params[name].sharding for name in found)
    assert [name for name in found if not np.array_equal(found[name], wanted[name])] == []


def test_config_starts_from_a_folder_and_trains_on_a_mesh(tmp_path):
    folder = FOLDER / "tiny-qwen3"
    settings = [f"task.size={folder}", f"init.checkpoint=hf:{folder}/model.safetensors", "mesh.fsdp=2", "mesh.tensor=4"]
    settings += ["evaluations={}", "checkpoint.best=None", "train.total=2 steps", "log.every=1 step"]
    config = load("configs.finetune_language", [*settings, "log.progress=none", "log.tensorboard=False"])
    draw = np.random.default_rng(0)
    data = engine.Packed([{"tokens": draw.integers(0, 16, 8)} for _ in range(8)], 8)
    engine.train(config, data=data, workdir=tmp_path / "run")
    assert "initialized 13 arrays from" in (tmp_path / "run" / "log.txt").read_text()
    rows = [data[i] for i in range(len(data))]
    assert len(rows) == config.train.global_batch_size
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    losses = nnx.jit(lambda model, batch: model(batch, None)[0])(language.read(folder), batch)
    mean = (losses * batch["weight"]).sum() / batch["weight"].sum()
    assert runs.rows(tmp_path / "run")[1] == pytest.approx(float(mean), rel=1e-5)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("Llama-3.1-8B", 8_030_261_248), ("Llama-3.2-1B", 1_235_814_400), ("Qwen3-0.6B", 596_049_920)],
)
def test_published_model_has_its_number_of_parameters(size, parameters):
    module = nnx.eval_shape(lambda: language_model(size).build(nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(module, nnx.Param))) == parameters


def test_every_size_is_a_task():
    assert {type(language_model(size, dropout=0.1)) for size in SIZES} == {LanguageModel}


LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}


def in_folder(folder, **changes):
    """Writes config.json with changed entries, and returns the folder."""
    entries = {name: value for name, value in {**LLAMA, **changes}.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(entries))
    return str(folder)


def test_config_of_older_files_is_read(tmp_path):
    assert language_model(in_folder(tmp_path)) == language_model("Llama-3.2-1B")
    found = language_model(in_folder(tmp_path, head_dim=80, rope_scaling=None, model_type="qwen3"))
    changes = {"head_dim": 80, "rope_scaling": None, "qk_norm": True}
    assert found == dataclasses.replace(language_model("Llama-3.2-1B"), **changes)


@pytest.mark.parametrize("item", TINY)
def test_config_for_transformers_is_read_as_the_same_task(item, tmp_path):
    task = language_model(str(FOLDER / item))
    (tmp_path / "config.json").write_text(config_json(task, 64))
    assert language_model(str(tmp_path)) == task
    assert (FOLDER / item / "written" / "config.json").read_text() == config_json(task, language.LENGTH)
    with pytest.raises(TaskError, match=r"config_json: found MoeLanguageModel\. Allowed: LanguageModel\."):
        config_json(MoeLanguageModel(), 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma"}, r"has model_type = 'gemma'\. Allowed: 'llama' or 'qwen3'\."),
        ({"attention_bias": True}, r"has attention_bias = True\. Allowed: False\."),
        ({"rope_scaling": {"type": "yarn"}}, r"has rope_type = 'yarn'\. Allowed: 'default' or 'llama3'\."),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, r"has partial_rotary_factor = 0.5\. Allowed: 1.0\."),
        ({"hidden_size": "absent"}, "has no entry 'hidden_size'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "has no entry 'factor'"),
        ({"hidden_size": "wide"}, r"config.json cannot be read \("),
    ],
)
def test_config_of_another_model_is_one_sentence(tmp_path, changes, message):
    with pytest.raises(TaskError, match=message):
        language_model(in_folder(tmp_path, **changes))


def test_unknown_size_lists_the_names(tmp_path):
    with pytest.raises(
        TaskError, match=r"task.size = Qwen3-7B: no such name, and no Qwen3-7B/config.json. Names: Meta"
    ):
        language_model("Qwen3-7B")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TaskError, match=r"config.json cannot be read"):
        language_model(str(tmp_path))
