"""Tables of names: origins of arrays by default rules and by entries, and entries that cannot be read."""

import numpy as np
import pytest

from engine.base.errors import TaskError
from engine.hub import Names
from engine.hub.names import Piece

TABLE = Names(
    {
        r"blocks/attention/query": "h.{layer}.attn.qkv[0 of 3]",
        r"blocks/gate_up": "h.{layer}.gate + h.{layer}.up",
        r"positions": "pos_embed",
        r"flat": "flat: bca->abc",
        r"stages/(\d+)/(.+)": r"layer\1/\2",
    },
    heads=("head",),
)


@pytest.mark.parametrize(
    ("path", "rank", "text", "order"),
    [
        ("stages/2/conv1/kernel", 4, "layer2.conv1.weight", (2, 3, 1, 0)),
        ("norm/scale", 1, "norm.weight", (0,)),
        ("norm/mean", 1, "norm.running_mean", (0,)),
        ("embed/table", 2, "embed.weight", (0, 1)),
        ("head/kernel", 2, "head.weight", (1, 0)),
        ("kernel", 2, "weight", (1, 0)),
        ("positions", 3, "pos_embed", (0, 1, 2)),
        ("flat", 3, "flat", (2, 0, 1)),
        ("blocks/gate_up/kernel", 2, "h.{layer}.gate.weight + h.{layer}.up.weight", (1, 0)),
    ],
)
def test_origin_by_rule_and_by_entry(path, rank, text, order):
    origin = TABLE.origin(path, rank)
    assert (str(origin), origin.order) == (text, order)


def test_parts_and_layers():
    origin = TABLE.origin("blocks/attention/query/kernel", 2)
    assert origin.is_stacked and origin.of_layer(7) == (Piece("h.7.attn.qkv.weight", 0, 3),)
    assert not TABLE.origin("positions", 3).is_stacked


@pytest.mark.parametrize(
    ("text", "there", "here"),
    [("a11->a", [[[5]], [[6]]], [5, 6]), ("ab->1ba", [[1, 2]], [[[1], [2]]]), ("1ab->b1a", [[[1, 2]]], [[[1]], [[2]]])],
)
def test_dimensions_of_size_one_may_be_on_one_side_only(text, there, here):
    origin = Names({"x": f"y: {text}"}).origin("x", np.ndim(here))
    assert origin.there(np.shape(here), 1) == list(np.shape(there))
    assert origin.array_here(np.array(there)).tolist() == here
    assert origin.array_there(np.array(here)).tolist() == there


def test_heads_are_whole_words():
    assert TABLE.is_head("head/kernel") and not TABLE.is_head("header/kernel")


@pytest.mark.parametrize(
    "text", ["a b", "a[3 of 3]", "a +", "a: ab->b", "a: ab->bc", "a: abc->cba", "a: aa->aa", "a: ab1->a", "a: a1->ab"]
)
def test_bad_entry_is_one_sentence(text):
    with pytest.raises(TaskError, match="pretrained: x: found"):
        Names({"x": text}).origin("x", 2)
