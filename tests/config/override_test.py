from typing import Any

import pytest

from engine.base.errors import ConfigError
from engine.config.draft import defaults
from engine.config.override import apply, locate


def draft_with(*overrides):
    c = defaults()
    c.task = dict(target="convoy_zoo.models.digits.Digits", width=64, encoder=dict(layers=3))
    c.evaluations.heldout = dict(data=dict(target="convoy_zoo.models.digits.scans"))
    apply(c, overrides, "--config.")
    return c


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.total=2 epochs", "2 epochs"),
        ("train.global_batch_size=1_024", 1024),
        ("optimizer.learning_rate=3e-4", 3e-4),
        ("optimizer.learning_rate=1", 1.0),
        ("cache.compiled=False", False),
        ("cache.compiled=true", True),
        ("checkpoint.every=None", None),
        ("checkpoint.every=null", None),
        ("data.limit=none", None),
        ("log.progress=none", "none"),  # the field allows the word "none" and not None
        ("mesh.cpu_devices=4", 4),
        ("mesh.cpu_devices=auto", "auto"),
        ("optimizer.trainable=", ""),
        ("optimizer.trainable='^head/'", "^head/"),
        ("name=digits-2", "digits-2"),
    ],
)
def test_override_of_a_typed_field_is_parsed_as_its_type(override, value):
    path = override.partition("=")[0]
    found: Any = draft_with(override)
    for name in path.split("."):
        found = found[name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("(1, 2)", (1, 2)),
        ("[1,2]", (1, 2)),
        ("1,2", (1, 2)),
        ("None", None),
        ("true", True),
        ("False", False),
        ("(data, fsdp)", ("data", "fsdp")),
        ("(data,)", ("data",)),
        ("(a|b)", "(a|b)"),
        ("gelu", "gelu"),
        ("'3'", "3"),
        ("007", "007"),
        ("a=b", "a=b"),
        ("none", "none"),
    ],
)
def test_override_of_an_open_field_is_a_literal_or_text(text, value):
    found = draft_with(f"task.new={text}").task.new
    assert found == value and type(found) is type(value)


def test_overrides_can_add_names_to_open_sections():
    c = draft_with(
        "task.encoder.heads=4",
        "task.decoder.layers=2",
        "evaluations.train.data.target=convoy_zoo.models.digits.scans",
        "optimizer.groups.head.match=^head",
        "hooks.plot.target=models.plot.run",
        "sharding.rules.mlp=(data, fsdp)",
        "tiny.train.global_batch_size=4",
        "optimizer.b1=0.8",
    )
    assert c.task.encoder.to_dict() == {"layers": 3, "heads": 4} and c.task.decoder.layers == 2
    assert list(c.evaluations) == ["heldout", "train"] and c.evaluations.train.every == "1 epoch"
    assert c.optimizer.groups.head.learning_rate_scale == 1.0 and c.hooks.plot.every == "1 epoch"
    assert c.sharding.rules.mlp == ("data", "fsdp")
    assert c.tiny.to_dict() == {"train.global_batch_size": 4}
    assert c.optimizer.b1 == 0.8


def test_override_with_a_dict_replaces_a_section_or_table():
    assert draft_with("evaluations={}").evaluations.to_dict() == {}
    assert draft_with("task={'target': 'a.b'}").task.to_dict() == {"target": "a.b"}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "train.totl=3",
            "train.totl: unknown field (--config.train.totl=3). Did you mean train.total? Fields here: total, ",
        ),
        ("train.seed=abc", "train.seed: found 'abc', allowed is an integer (--config.train.seed=abc)."),
        ("train.seed=None", "train.seed: found 'None', allowed is an integer"),
        ("log.tensorboard=1", "log.tensorboard: found '1', allowed is true or false"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate: found nan"),
        ("optimizer.weight_decay=nan", "optimizer.weight_decay: found nan (--config.optimizer.weight_decay=nan)"),
        ("optimizer.weight_decay=1e400", "optimizer.weight_decay: found inf"),
        ("train.total=3", "train.total: found '3', not a duration"),
        ("train.seed", "--config.train.seed: found no '='. Write --config.train.seed=VALUE."),
        ("=3", "--config.=3: found no '='. Write --config.train.total=VALUE."),
        ("train=3", "train: found '3', allowed is a section (--config.train=3). Set one of: train.total, "),
        (
            "evaluations=3",
            "evaluations: found '3', allowed is a dict (--config.evaluations=3). Set one entry, evaluations.NAME",
        ),
        ("train..seed=3", "train..seed: contains an empty name"),
        (
            "train.seed.x=3",
            "train.seed.x: train.seed is a value and has no fields (--config.train.seed.x=3). Set train.seed",
        ),
        (
            "task.width.x=3",
            "task.width.x: task.width is 64 and has no fields (--config.task.width.x=3). Set task.width itself.",
        ),
        ("evaluations.held out.every=1 step", "evaluations.held out: is not a valid name of an entry"),
        ("tiny.train.totl=3", "tiny.train.totl: unknown field"),
        ("seed=3", "seed: unknown field (--config.seed=3). Did you mean train.seed?"),
    ],
)
def test_override_error_quotes_the_override(override, sentence):
    with pytest.raises(ConfigError) as error:
        draft_with(override)
    assert sentence in str(error.value)


def test_tiny_path_has_the_slot_of_the_overridden_field():
    assert locate("tiny.train.seed") == locate("train.seed")


def test_empty_checkpoint_clears_what_belonged_to_it():
    c = defaults()
    c.init.checkpoint = "runs/first"
    c.init.paths = {"head": None}
    c.init.sources.lidar = dict(checkpoint="runs/lidar", paths={"lidar": ""})
    apply(c, ["init.sources.lidar.checkpoint=runs/other"])
    assert c.init.to_dict()["sources"]["lidar"] == {"checkpoint": "runs/other", "paths": {"lidar": ""}}
    apply(c, ["init.checkpoint=", "init.sources.lidar.checkpoint="])
    assert c.init.to_dict() == {"checkpoint": "", "paths": {}, "sources": {}}
    apply(c, ["init.checkpoint=runs/second", "init.paths.neck=body"])
    assert c.init.to_dict()["paths"] == {"neck": "body"}
