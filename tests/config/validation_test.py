import copy
import dataclasses
import pickle
from types import MappingProxyType

import pytest

from engine.base.duration import Duration
from engine.base.errors import ConfigError
from engine.config.draft import defaults
from engine.config.schema import Config, Group
from engine.config.validation import validate


def draft():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.digits.Digits", width=64)
    c.data = dict(target="convoy_zoo.models.digits.scans")
    c.evaluations.heldout = dict(data=dict(target="convoy_zoo.models.digits.scans", split="test"))
    return c


def test_validated_config_is_deeply_frozen():
    c = draft()
    c.task.sizes, c.task.encoder = [1, [2]], dict(layers=3)
    config = validate(c)
    assert isinstance(config, Config)
    assert config.task.target == "convoy_zoo.models.digits.Digits"
    assert config.task.arguments == {"width": 64, "sizes": (1, (2,)), "encoder": {"layers": 3}}
    assert isinstance(config.task.arguments["encoder"], MappingProxyType)
    assert config.evaluations["heldout"].data.arguments == {"split": "test"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.seed = 1  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        config.task.arguments["width"] = 1  # pyright: ignore[reportIndexIssue]
    c.task.width = 1
    assert config.task.arguments["width"] == 64


def test_validate_fills_in_defaults_of_a_plain_dict():
    config = validate(
        {"task": {"target": "a.b"}, "data": {"target": "a.c"}, "optimizer": {"groups": {"head": {"match": "^head"}}}}
    )
    assert config.train.total == Duration(10, "epochs") and config.optimizer.groups["head"] == Group(match="^head")


def test_config_can_be_pickled_and_copied():
    config = validate(draft())
    assert pickle.loads(pickle.dumps(config)) == config == copy.deepcopy(config) == validate(config)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": {}}, "task.target: is empty (x.py). Name a class or function by dotted path"),
        ({"data": {}}, "data.target: is empty (x.py)."),
        ({"optimizer": {"target": ""}}, "optimizer.target: is empty (x.py)."),
        ({"hooks": {"plot": {}}}, "hooks.plot.target: is empty (x.py)."),
        ({"evaluations": {"heldout": {"data": {"target": "a.b"}}, "heldot": {}}}, "Did you mean evaluations.heldout?"),
        ({"optimizer": {"groups": {"head": {}}}}, "optimizer.groups.head.match: is empty (x.py)."),
        (
            {"train": {"accumulate": 3}},
            "train.accumulate: found 3, which does not divide train.global_batch_size = 128 (x.py). "
            "Near divisors: 1, 2, 4.",
        ),
        (
            {"train": {"accumulate": 2, "global_batch_size": 2**31 - 1}},  # a prime
            "train.accumulate: found 2, which does not divide train.global_batch_size = 2147483647 (x.py). "
            "Near divisors: 1, 2147483647.",
        ),
        (
            {"optimizer": {"learning_rate": 1e20, "final_scale": 1e20}},
            "optimizer.final_scale: found 1e+20, which is too large with optimizer.learning_rate = 1e+20 (x.py).",
        ),
        (
            {"optimizer": {"groups": {"head": {"match": "a", "learning_rate_scale": 1e30}}, "learning_rate": 2.0}},
            "optimizer.groups.head.learning_rate_scale: found 1e+30, which is too large",
        ),
        ({"optimizer": {"weight_decay": 1e300}}, "optimizer.weight_decay: found 1e+300 (x.py). Allowed: at most 1e+30"),
        ({"optimizer": {"groups": {"a": {"match": "a", "b1": 1e300}}}}, "optimizer.groups.a.b1: found 1e+300 (x.py)."),
        ({"mesh": {"data": -1, "fsdp": -1}}, "mesh.fsdp: found -1, but mesh.data is -1 too (x.py). Only one axis can"),
        ({"mesh": {"pipeline": -1, "context": -1}}, "mesh.context: found -1, but mesh.pipeline is -1 too (x.py)."),
        ({"mesh": {"dcn": {"data": -1, "fsdp": -1}}}, "mesh.dcn.fsdp: found -1, but mesh.dcn.data is -1 too (x.py)."),
        (
            {"checkpoint": {"best": "heldut/accuracy"}},
            "checkpoint.best: found 'heldut/accuracy', there is no evaluation or hook 'heldut' (x.py). "
            "Evaluations and hooks: heldout. Did you mean heldout?",
        ),
        ({"sharding": {"rules": {"mlp": 3}}}, "sharding.rules.mlp: found 3 (x.py). Allowed: a mesh axis, a tuple"),
        ({"sharding": {"rules": {"a:b": None}}}, "sharding.rules.a:b: is not a valid name of an axis"),
        (
            {"init": {"checkpoint": "runs/a", "paths": {"head": 3}}},
            "init.paths.head: found 3 (x.py). Allowed: a path prefix in the checkpoint, '' for the whole checkpoint",
        ),
        (
            {"init": {"paths": {"head": None}}},
            "init.paths.head: is set, but init.checkpoint is not (x.py).",
        ),
        ({"tiny": {"train.totl": 1}}, "tiny.train.totl: unknown field (x.py). Did you mean train.total?"),
        ({"tiny": {"train.seed": "a"}}, "tiny.train.seed: found 'a' (text), allowed is an integer (x.py)."),
        ({"tiny": {"train": {}}}, "tiny.train: names a section (x.py). Name one field: "),
        ({"train": {"totl": 1}}, "train.totl: unknown field (x.py). Did you mean train.total?"),
    ],
)
def test_inconsistent_settings_are_errors_that_name_the_field(changes, sentence):
    with pytest.raises(ConfigError) as error:
        validate(draft().to_dict() | changes, origin="x.py")
    assert sentence in str(error.value)


def test_consistent_settings_are_accepted():
    c = draft()
    c.train.accumulate = 4
    c.mesh.fsdp = -1
    c.checkpoint.best = "heldout/accuracy"
    c.sharding.rules = dict(mlp=None, embed="fsdp", batch=("data", "fsdp"))
    c.init = dict(checkpoint="runs/a", paths={"head": None, "hidden/0": "layers/0", "teacher": ""})
    c.tiny = {"train.global_batch_size": 8, "task.width": 8, "evaluations.heldout.data.limit": 4}
    assert validate(c).sharding.rules["batch"] == ("data", "fsdp")
