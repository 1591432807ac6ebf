import pytest

from engine.base.duration import Duration
from engine.base.errors import ConfigError
from engine.config.draft import defaults
from engine.config.text import flatten, from_text, to_text, value_text
from engine.config.validation import validate


def config(**task):
    c = defaults()
    c.name = "digits"
    c.task = dict(target="convoy_zoo.models.digits.Digits", **task)
    c.data = dict(target="convoy_zoo.models.digits.scans", split="train")
    return c


def full_config():
    c = config(
        width=64,
        sizes=[1, (2, 3)],
        rate=1e-05,
        on=True,
        nothing=None,
        encoder=dict(layers=2, inner=dict(norm="rms"), empty={}),
        weights={0: 1.5, 1: 2.0},
        sources=[dict(path="a", weight=1)],
        text="plain words",
    )
    c.optimizer.groups = dict(zebra=dict(match="^z"), ant=dict(match="^a", weight_decay=0.0))
    c.evaluations.heldout = dict(data=dict(target="convoy_zoo.models.digits.scans", split="test"), every=None)
    c.hooks.plot = dict(target="models.plot.run", every="1 epoch", size=3)
    c.sharding.rules = dict(batch=("data", "fsdp"), mlp=None)
    c.mesh.cpu_devices = "auto"
    c.tiny = {"train.global_batch_size": 8, "task.width": 8}
    return c


def test_to_text_writes_fields_in_schema_order_then_arguments():
    lines = to_text(validate(full_config())).splitlines()
    assert lines[:4] == [
        "name: digits",
        "task.target: convoy_zoo.models.digits.Digits",
        "task.width: 64",
        "task.sizes: (1, (2, 3))",
    ]
    assert {
        "task.rate: 1e-05",
        "task.nothing: None",
        "task.encoder.inner.norm: rms",
        "task.encoder.empty: {}",
        "task.weights: {0: 1.5, 1: 2.0}",
        "task.sources: ({'path': 'a', 'weight': 1},)",
        "task.text: plain words",
        "optimizer.trainable: ''",
        "evaluations.heldout.every: None",
        "sharding.rules.batch: ('data', 'fsdp')",
        "tiny.train.global_batch_size: 8",
    } <= set(lines)
    assert lines.index("data.limit: None") < lines.index("data.split: train") < lines.index("train.total: 10 epochs")
    assert [line for line in lines if line.endswith(("^z", "^a"))] == [
        "optimizer.groups.zebra.match: ^z",
        "optimizer.groups.ant.match: ^a",
    ]


def test_from_text_restores_an_equal_config():
    original = validate(full_config())
    copy = from_text(to_text(original), "config.txt")
    assert copy == original and to_text(copy) == to_text(original)
    assert list(copy.optimizer.groups) == ["zebra", "ant"]


@pytest.mark.parametrize("cut", [1, 2, 30, 400])
def test_text_that_was_cut_is_not_read_with_the_defaults(cut):
    original = validate(full_config())
    text = to_text(original)
    stored = f"# {text.count('\n')} settings\n{text}"
    assert from_text(stored, "config.txt") == from_text(text, "config.txt") == original
    with pytest.raises(ConfigError, match=r"^config\.txt"):
        from_text(stored[:-cut], "config.txt")
    with pytest.raises(ConfigError, match=r"its first line states \d+ settings, found \d+: it was cut"):
        from_text(stored[: stored.rindex("\n", 0, -cut) + 1], "config.txt")


@pytest.mark.parametrize(
    "value",
    [
        "", " ", "3", "1e3", "None", "none", "true", "False", "(1, 2)", "(data, fsdp)", "'x'", '"', "a'b", "a: b",
        "# x", "a\nb", "\u2028", "{}", "é", "\\", "-", "a=b", "007", " x ", "[", "1_000", "x" * 500, 3, 3.0, 1e-9,
        True, None, (), (1,), ((),), ("3", 3), {}, {"a": {}}, {"a b": 1}, {"a": {"b.c": 1}}, {1: "x"},
        {"a": {1: {"b": "c"}}},
    ],
)  # fmt: skip
def test_plain_values_round_trip_through_text(value):
    original = validate(config(x=value))
    copy = from_text(to_text(original), "config.txt")
    assert copy == original
    assert repr(copy.task.arguments["x"]) == repr(original.task.arguments["x"])


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("train.total", "30 epochs", "30 epochs"),
        ("log.progress", "none", "none"),
        ("checkpoint.best", "None", "'None'"),
        ("optimizer.trainable", "", "''"),
        ("task.x", "3", "'3'"),
        ("task.x", "three", "three"),
        ("task.x", 3, "3"),
    ],
)
def test_value_text_quotes_only_ambiguous_text(name, value, text):
    assert value_text(name, value) == text


def test_from_text_uses_defaults_for_missing_fields():
    text = "# by hand\n\ntask.target: a.b\ndata.target: a.c\n"
    assert from_text(text, "config.txt").train.total == Duration(10, "epochs")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("train.totl: 3", "train.totl: unknown field (config.txt:3). Did you mean train.total?"),
        ("train.seed: x", "train.seed: found 'x', allowed is an integer (config.txt:3)."),
        ("train.seed", "config.txt:3: found 'train.seed'. Each line is 'name: value', as `convoy config` prints."),
        ("task.target: a.b", "config.txt:3: task.target is also set on line 1. Remove one of the lines."),
        (
            "train.accumulate: 3",
            "train.accumulate: found 3, which does not divide train.global_batch_size = 128 (config.txt)",
        ),
    ],
)
def test_from_text_error_names_the_line(line, sentence):
    with pytest.raises(ConfigError) as error:
        from_text(f"task.target: a.b\ndata.target: a.c\n{line}\n", "config.txt")
    assert sentence in str(error.value)


def test_flatten_returns_typed_values():
    flat = dict(flatten(validate(full_config())))
    assert (
        flat["task.sizes"] == (1, (2, 3))
        and flat["train.seed"] == 0
        and flat["checkpoint.every"] == Duration(10, "minutes")
    )
