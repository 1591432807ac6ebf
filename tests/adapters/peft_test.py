"""Adapters in the format of PEFT, with files, outputs and gradients of PEFT as golden numbers.

Written by: python -m benchmarks.references --only=adapters --golden=tests/adapters/golden
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from benchmarks.references import adapters
from engine import Task
from engine.adapters import adapted, load_peft, save_peft
from engine.base.errors import CheckpointError
from engine.layers import Experts

FOLDER = Path(__file__).parent / "golden" / "adapters"
ITEMS = list(adapters.ITEMS)[: adapters.GOLDEN]


def model(**settings):
    settings = {"match": "kernel", "rank": 2, "alpha": 3, "dora": True, **settings}
    return adapted(adapters.Nets(), **settings).build(nnx.Rngs(0))


@pytest.mark.parametrize("item", ITEMS)
def test_outputs_gradients_and_files_equal_those_of_peft(item):
    rows = list(adapters.compared(FOLDER, item))
    assert len(rows) == 3
    assert [f"{row.item}: {row.largest_difference}" for row in rows if not row.agrees] == []


def test_config_is_that_of_peft(tmp_path):
    found = adapters.read(FOLDER / "dora", "dora")
    names = save_peft(found, tmp_path)
    assert names == ["conv", "head", "layers.0.out", "layers.0.query", "layers.1.out", "layers.1.query"]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    wanted = json.loads((FOLDER / "dora" / "adapter_config.json").read_text())
    assert config.pop("target_modules") == names
    assert {name: wanted[name] for name in config} == config


def test_one_of_several_adapters_is_written_and_read(tmp_path):
    several = {"one": dict(match="head/kernel", rank=2), "two": dict(match="query/kernel", rank=3)}
    first = adapted(adapters.Nets(), adapters=several).build(nnx.Rngs(0))
    second = adapted(adapters.Nets(), adapters=several).build(nnx.Rngs(1))
    assert save_peft(first, tmp_path, "two") == ["layers.0.query", "layers.1.query"]
    assert load_peft(second, tmp_path, "two") == f"read adapter two of 2 kernels from {tmp_path}"
    for name, equal in [("stack/layers/query/kernel_two_a", True), ("head/kernel_one_a", False)]:
        x, y = (dict(flat(one))[name] for one in (first, second))
        assert np.array_equal(x, y) == equal
    with pytest.raises(CheckpointError, match="name = None: the model has the adapters one, two"):
        save_peft(first, tmp_path)


def flat(module):
    return [("/".join(map(str, path)), x.get_value()) for path, x in nnx.to_flat_state(nnx.state(module, nnx.Param))]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rank": 4}, "has rank=2, unlike adapter lora"),
        ({"rslora": True, "alpha": 4}, "has alpha=3, rslora=False, unlike adapter lora"),
        ({"match": "head"}, "Only here: none. Only there: base_model.model.conv.lora_A.weight"),
    ],
)
def test_another_adapter_is_an_error(settings, text):
    with pytest.raises(CheckpointError, match=text):
        load_peft(model(**settings), FOLDER / "dora")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be read as a config of PEFT"),
        ("[]", "cannot be read as a config of PEFT"),
        ('{"peft_type": "IA3"}', "peft_type = 'IA3' is not supported"),
        ('{"peft_type": "LORA", "rank_pattern": {"head": 3}}', "rank_pattern = {'head': 3} is not supported"),
    ],
)
def test_wrong_configs_are_sentences(tmp_path, text, problem):
    shutil.copy(FOLDER / "dora" / "adapter_model.safetensors", tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=problem):
        load_peft(model(), tmp_path)


def test_missing_files_are_sentences(tmp_path):
    with pytest.raises(CheckpointError, match=r"adapter_config.json: cannot be read"):
        load_peft(model(), tmp_path)
    shutil.copy(FOLDER / "dora" / "adapter_config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: no safetensors file found"):
        load_peft(model(), tmp_path)


class Mixture(nnx.Module):
    def __init__(self, rngs):
        self.experts = Experts(4, 4, 2, 1, capacity_factor=None, rngs=rngs)


class Mixtures(Task):
    def build(self, rngs):
        return Mixture(rngs)


def test_what_peft_has_no_place_for_is_an_error(tmp_path):
    found = adapted(Mixtures(), match="down").build(nnx.Rngs(0))
    with pytest.raises(CheckpointError, match=r"experts/down \[2, 4, 4\] is experts.down there. PEFT has adapters of"):
        save_peft(found, tmp_path)
    with pytest.raises(CheckpointError, match=r"The model has no adapters. Wrap its Task"):
        save_peft(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), tmp_path)
    assert list(tmp_path.iterdir()) == []
