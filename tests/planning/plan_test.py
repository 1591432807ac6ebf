"""Plans of configs outside of this repository, whose models the engine does not know."""

import dataclasses
import re
import sys

import jax
import pytest

from engine.base.errors import ConfigError
from engine.config import defaults, load
from engine.config.schema import Evaluation
from engine.planning import plan
from tests.planning import tiny as tiny_costs

CONFIG = '''
import dataclasses
import jax.numpy as jnp
import numpy as np
from flax import nnx
from engine import Loss, Task
from engine.config import defaults


class Points:
    def __len__(self):
        return 4096

    def __getitem__(self, index):
        return {"x": np.zeros(64, np.float32), "y": np.zeros(8, np.float32)}


@dataclasses.dataclass
class Regression(Task):
    """Maps points to points."""

    def build(self, rngs):
        return nnx.Sequential(nnx.Linear(64, 512, rngs=rngs), nnx.relu, nnx.Linear(512, 8, rngs=rngs))

    def loss(self, model, batch, rng):
        return Loss.of(jnp.square(model(batch["x"]) - batch["y"]).mean(-1))


def get_config():
    c = defaults()
    c.name = "outside"
    c.task = dict(target="outside.Regression")
    c.data = dict(target="outside.Points")
    c.train.total = "10 steps"
    c.train.global_batch_size = 256
    return c
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    (tmp_path / "outside.py").write_text(CONFIG)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield load(str(tmp_path / "outside.py"))
    sys.modules.pop("outside", None)


def test_plan_of_an_unknown_model_prints_a_table_the_settings_and_reasons(outside):
    progress = []
    text = plan.plan(outside, "h100:2x8", on_progress=progress.append)
    assert "16 devices, 2 hosts of 8 devices" in text
    assert "37,384 parameters" in text  # 64 * 512 + 512 + 512 * 8 + 8
    assert "--config.mesh.data=" in text and "MFU" in text
    assert "the others:" in text and "\n  2: " in text
    assert not any(axis in text for axis in ("tensor=", "context=", "pipeline=", "expert="))  # it has no such layers
    assert any("tracing" in line for line in progress)
    html = text._repr_html_()  # as a notebook shows it
    assert html.count("<table>") == 1 and ">MFU</th>" in html and html.count('scope="row"') == plan.SHOWN


def test_local_plan_takes_the_devices_of_this_process(outside):
    text = "\n".join(plan.plan_parts(outside, "local"))
    assert "hardware: 8 x cpu" in text and "rates assumed for CPUs" in text


def test_nothing_fits_is_an_error_with_the_nearest_changes(outside, monkeypatch):
    monkeypatch.setattr(plan.machines, "of_target", tiny(plan.machines.of_target))
    with pytest.raises(
        ConfigError, match=r"nothing fits h100:1x8\. The least of .* It would fit with: .*GiB of memory"
    ):
        list(plan.plan_parts(outside, "h100:1x8"))


def test_batches_that_no_mesh_divides_are_an_error_with_the_settings_to_paste(outside):
    small = {name: Evaluation(data=outside.data, batch_size=size) for name, size in (("near", 2), ("far", 16))}
    train = dataclasses.replace(outside.train, global_batch_size=3)
    config = dataclasses.replace(outside, train=train, evaluations=small)
    with pytest.raises(ConfigError, match=r"do not divide .*\. Use (.*), or fewer devices") as raised:
        list(plan.plan_parts(config, "h100:1x8"))
    flags = re.findall(r"--config\.(\S+)=(\d+)", str(raised.value))
    assert flags == [("train.global_batch_size", "8"), ("evaluations.near.batch_size", "8")]
    train = dataclasses.replace(train, global_batch_size=8)
    small["near"] = dataclasses.replace(small["near"], batch_size=8)
    assert list(plan.plan_parts(dataclasses.replace(config, train=train, evaluations=small), "h100:1x8"))


def decoder(width, heads, batch):
    c = defaults()
    c.task = {
        "target": "convoy_zoo.models.decoder.LanguageModel",
        "vocabulary": 64,
        "width": width,
        "heads": heads,
        "depth": 2,
    }
    c.data = {"target": "benchmarks.aot.programs.Tokens", "length": 64}
    c.train.total, c.train.global_batch_size = "10 steps", batch
    return c


def test_batch_is_named_where_only_meshes_that_split_an_indivisible_parameter_divide_it(outside):
    small = dataclasses.replace(outside, train=dataclasses.replace(outside.train, global_batch_size=7))
    words = r"its 18 devices do not divide train.global_batch_size = 7\. Use \S+=18, or fewer devices, such as 7\."
    with pytest.raises(ConfigError, match=words):
        list(plan.plan_parts(small, "h100:2x9"))
    config = decoder(width=32, heads=2, batch=7)
    with pytest.raises(ConfigError, match=r"Use --config.train.global_batch_size=9, or fewer devices, such as 7\."):
        list(plan.plan_parts(config, "h100:2x9"))  # tensor=9 divides the batch and no parameter


def test_batch_for_very_many_devices_leaves_few_devices_to_a_row():
    words = "Use --config.train.global_batch_size=4000, or fewer devices, such as 256."
    with pytest.raises(ConfigError, match=re.escape(words)):
        list(plan.plan_parts(decoder(width=256, heads=16, batch=256), "h100:4000x8"))


def test_plan_that_fits_in_another_precision_alone_is_refused_and_names_it(outside, monkeypatch):
    def fits(model, cost):
        return cost.candidate.precision == "bfloat16"

    monkeypatch.setattr(plan.CostModel, "fits", fits)
    with pytest.raises(ConfigError, match=r"nothing fits h100:1x8.*It would fit with: train\.precision=bfloat16"):
        list(plan.plan_parts(outside, "h100:1x8"))


def tiny(of_target):
    return lambda target: dataclasses.replace(of_target(target), memory=1000)


@pytest.mark.slow
def test_compiled_candidates_come_first_with_the_memory_of_their_programs(outside):
    progress = []
    text = "\n".join(plan.plan_parts(outside, "local", compiles=2, on_progress=progress.append))
    assert "1*" in text and "activations and temporary arrays" in text
    assert sum("ahead of time" in line for line in progress) == 2


def test_plan_of_which_no_compiled_candidate_fits_is_refused(outside, monkeypatch):
    monkeypatch.setattr(plan.CostModel, "fits", lambda model, cost: not cost.compiled)
    monkeypatch.setattr(plan, "SHOWN", 1)
    with pytest.raises(ConfigError, match="fit by formula, and none when compiled"):
        list(plan.plan_parts(outside, "local", compiles=1))


def test_candidate_that_the_compiler_refuses_is_listed_with_the_reason(outside, monkeypatch):
    def refuse(program, executable):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too large\nmore")

    monkeypatch.setattr(plan, "read", refuse)
    text = "\n".join(plan.plan_parts(outside, "local", compiles=1))
    assert "impossible when compiled:" in text and "RESOURCE_EXHAUSTED: too large\n" in text
    assert "Compile more with --compile=N" in text


@pytest.mark.parametrize(
    ("train", "target", "compiles", "problem"),
    [
        ({"global_batch_size": "auto"}, "local", 0, "global_batch_size = auto: a plan keeps the global batch"),
        ({"precision": "float8"}, "v5e:2x2", 0, "TPU v5e has no products in float8"),
        ({}, "local", -1, "--compile = -1"),
    ],
)
def test_arguments_that_no_plan_can_have_are_refused(outside, train, target, compiles, problem):
    config = dataclasses.replace(outside, train=dataclasses.replace(outside.train, **train))
    with pytest.raises(ConfigError, match=problem):
        list(plan.plan_parts(config, target, compiles=compiles))


def test_calibration_of_an_absent_target_is_refused(outside):
    with pytest.raises(ConfigError, match="--calibrate measures the devices at hand"):
        list(plan.plan_parts(outside, "h100:1x8", calibrates=True))


def test_of_compiled_candidates_that_are_as_fast_the_simplest_wins():
    def ranked(data_s):
        model, costs = tiny_costs.model(), []
        for axes, seconds in (({"data": 8, "zero1": True}, data_s), ({"fsdp": 8}, 1.0)):
            cost = model.cost(tiny_costs.candidate(**axes))
            costs.append(dataclasses.replace(cost, seconds={"compute": seconds}, compiled=True))
        return plan.compiled_first(model, "float32", costs, [])

    assert ranked(0.99)[0].candidate.axes["fsdp"] == 8
    assert ranked(0.9)[0].candidate.axes["data"] == 8
