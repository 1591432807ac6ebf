"""Any value in any field of a config is accepted, or refused with a sentence that names the field."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.base.duration import UNITS
from engine.base.errors import ConvoyError
from engine.config import defaults, validate
from engine.config.dev_run import tiny
from engine.config.fields import closed_paths
from engine.config.override import apply, assign
from engine.config.schema import Evaluation, Group, Hook
from engine.config.text import from_text, to_text

ENTRIES = {"evaluations.heldout": Evaluation, "hooks.plot": Hook, "optimizer.groups.head": Group}
FIELDS = list(closed_paths())
FIELDS += [path for entry, section in ENTRIES.items() for path in closed_paths(section, entry)]
FIELDS += ["task.width", "data.n", "optimizer.weight_decay", "sharding.rules.mlp", "init.paths.head", "tiny.train.seed"]
FIELDS += ["train", "evaluations", "x", "train.y", "task.target.x", "evaluations.a b.every", "train..seed", ""]

NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 7, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, -(2**63)]),
    st.sampled_from([400, 5000]).map(lambda digits: 10**digits),
    st.sampled_from([0.0, -0.0, 5e-324, 1e-30, 1e30, 1e38, 1e39, 1e300, 1.7e308, float("nan"), float("inf")]),
)
NUMBER_TEXTS = st.one_of(
    st.sampled_from(["1e300", "1e400", "1e999999999", "-1", "0", "0.5", ".5", "1_000", "1__0", "nan", "-Infinity"]),
    st.sampled_from(["9" * 30, "9" * 5000, "0." + "3" * 40, "1e-300", "0x10", "1e", "True", "none", "٣"]),
    st.integers().map(str),
    st.floats().map(str),
)
DURATIONS = st.tuples(NUMBER_TEXTS, st.sampled_from(["", " ", "\t"]), st.sampled_from([*UNITS, "epoch", "days", ""]))
TEXTS = st.one_of(
    DURATIONS.map("".join),
    NUMBER_TEXTS,
    st.text(max_size=20),
    st.sampled_from(["", " ", "a.b", "auto", "heldout/loss", "(", "a{99999999999}", "[[a]", "full", "save:x"]),
    st.sampled_from(["\0", "\ud800", "\n", "a\nb: c", "'", '"a', "{'a': 1}", "(data, fsdp)", "[" * 200, "x" * 300]),
)
PLAIN = st.one_of(NUMBERS, TEXTS, st.booleans(), st.none())
VALUES = st.one_of(
    PLAIN,
    st.lists(PLAIN, max_size=3),
    st.dictionaries(st.one_of(st.text(max_size=5), NUMBERS, st.just("target"), st.none()), PLAIN, max_size=3),
    st.sampled_from([b"bytes", print, object(), 1j, {1}, range(3), int, [[[[1]]]], {"target": {"target": 1}}]),
)


def draft():
    c = defaults()
    c.task = dict(target="a.Task")
    c.data = dict(target="a.source")
    c.evaluations.heldout = dict(data=dict(target="a.source"))
    c.hooks.plot = dict(target="a.Plot")
    c.optimizer.groups.head = dict(match="^head/")
    return c


# Without limits on time, which a busy machine would exceed.
EXAMPLES = settings(derandomize=True, deadline=None, max_examples=600, suppress_health_check=[HealthCheck.too_slow])


def check(field, change):
    """Applies a change of a field to a config; the config that results can be written, read and shrunk."""
    try:
        c = draft()
        change(c)
        config = validate(c)
    except ConvoyError as error:
        section = field.rpartition(".")[0]
        assert section in str(error), f"{error} does not name {field}"
        return
    assert from_text(to_text(config), "x") == config
    tiny(config)


@pytest.mark.slow
@EXAMPLES
@given(st.sampled_from(FIELDS), VALUES)
def test_any_value_is_accepted_or_refused_by_name(field, value):
    check(field, lambda c: assign(c, field, value))


@pytest.mark.slow
@EXAMPLES
@given(st.sampled_from(FIELDS), TEXTS)
def test_any_text_on_the_command_line_is_accepted_or_refused_by_name(field, text):
    check(field, lambda c: apply(c, [f"{field}={text}"]))
