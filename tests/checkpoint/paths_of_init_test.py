"""Which checkpoint gives an array, and the path of the array there."""

import dataclasses
from types import MappingProxyType

import pytest

from engine.base.errors import ConfigError
from engine.checkpoint.paths_of_init import owners, translate
from engine.config.draft import defaults
from engine.config.override import apply
from engine.config.schema import Init, InitSource
from engine.config.text import from_text, to_text
from engine.config.validation import validate

HERE = ["params/camera/net/w", "params/lidar/net/w", "params/head/w", "carried/head/mean"]


@pytest.mark.parametrize(
    ("name", "paths", "expected"),
    [
        ("a/b/w", {}, "a/b/w"),
        ("a/b/w", {"a": "x"}, "x/b/w"),
        ("a/b/w", {"a/": "x/"}, "x/b/w"),
        ("ab/w", {"a": "x"}, "ab/w"),
        ("a/b/w", {"": "x"}, "x/a/b/w"),
        ("a/b/w", {"": "x", "a/b": ""}, "w"),
        ("a/b/w", {"a": "x", "a/b": None}, None),
        ("a/b/w", {"a/b": "x", r"^a/(.*)/w": r"y/\1/v"}, "y/b/v"),
        ("a/b/w", {r"^.*w$": None}, None),
        ("layers/3/inner/w", {r"^(.*)/inner/": r"\1/"}, "layers/3/w"),
    ],
)
def test_first_regular_expression_and_then_the_longest_prefix_decides(name, paths, expected):
    assert translate(name, paths) == expected


def test_sources_come_before_the_checkpoint_of_all_arrays():
    init = Init(sources={"camera": InitSource(checkpoint="c", paths={"camera": ""})})
    assert owners(init, HERE) == {"params/camera/net/w": "camera"}
    both = Init(checkpoint="all", sources=init.sources)
    assert owners(both, HERE) == {key: "camera" if "camera" in key else "" for key in HERE}


def test_array_with_two_sources_and_unused_entries_are_config_errors():
    camera, all_nets = InitSource(paths={"camera": ""}), InitSource(paths={r"^\w+/net": "net"})
    with pytest.raises(ConfigError, match=r"init.sources.nets.paths: camera/net/w is also in init.sources.camera"):
        owners(Init(sources={"camera": camera, "nets": all_nets}), HERE)
    with pytest.raises(ConfigError, match=r"init.sources.radar.paths.rada: no parameter .* has this prefix."):
        owners(Init(sources={"radar": InitSource(paths={"rada": ""})}), HERE)
    with pytest.raises(ConfigError, match=r"init.paths.\^rada: no path of this model matches the regular expression."):
        owners(Init(paths={"^rada": ""}), HERE)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["sources.lidar.checkpoint=runs/a"], "init.sources.lidar.paths: is empty. Name the arrays that it gives"),
        (
            ["sources.lidar.paths.lidar=x"],
            "init.sources.lidar.paths.lidar: is set, but init.sources.lidar.che",
        ),
        (["checkpoint=runs/a", "paths={'^(': 'x'}"], "init.paths.^(: found '^(', not a regular expression"),
        (
            ["checkpoint=runs/a", r"paths={'^a': '\\1'}"],
            "init.paths.^a: found '\\\\1', not a replacement for",
        ),
    ],
)
def test_wrong_paths_are_config_errors(overrides, text):
    with pytest.raises(ConfigError) as error:
        config(*overrides)
    assert text in str(error.value)


def config(*overrides):
    c = defaults()
    c.task = dict(target="convoy_zoo.models.digits.Digits")
    c.data = dict(target="convoy_zoo.models.digits.scans")
    apply(c, [f"init.{text}" for text in overrides])
    return validate(c)


@pytest.mark.parametrize("entry", [r"^lidar/(\w+)", "^.*/(down|up)$", "", "layers.0", "a: b", "a=b", "net"])
def test_paths_survive_the_text_of_a_config(entry):
    found = config("checkpoint=runs/a", "sources.lidar.checkpoint=runs/b", "sources.lidar.paths.x=y")
    paths = MappingProxyType({entry: "to", "other": None})
    sources = {"lidar": InitSource(checkpoint="runs/b", paths=paths)}
    found = dataclasses.replace(found, init=Init(checkpoint="runs/a", paths=paths, sources=MappingProxyType(sources)))
    assert from_text(to_text(found), "config.txt") == found
