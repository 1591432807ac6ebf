import pytest

from engine.base.errors import ConfigError, UnknownFieldError
from engine.config.fields import (
    OPEN,
    PLAIN,
    ROOT,
    Slot,
    check_value,
    child,
    closed_paths,
    describe,
    slots,
    unknown_field,
)
from engine.config.schema import Checkpoint, Config, Data, Evaluation, Group, Log, MeshSpec, Optimizer, Train


def test_slots_describe_the_schema():
    assert slots(Config)["train"] == Slot(section=Train)
    assert slots(Config)["evaluations"] == Slot(entries=Evaluation)
    assert slots(Optimizer)["groups"] == Slot(entries=Group)
    assert slots(Config)["tiny"] == slots(Evaluation)["tags"] == OPEN
    assert slots(Train)["seed"] == Slot(types=(int,))
    assert slots(Checkpoint)["every"].optional and not slots(Train)["total"].optional
    assert slots(Evaluation)["data"] == slots(Config)["data"]


def test_child_returns_the_slot_of_a_name():
    evaluations = child(ROOT, "evaluations", "evaluations")
    assert child(evaluations, "heldout", "evaluations.heldout") == Slot(section=Evaluation)
    assert child(Slot(section=Data), "split", "data.split") == PLAIN  # an argument of the target
    assert child(OPEN, "anything", "tiny.anything") == PLAIN


@pytest.mark.parametrize(
    ("slot", "name"),
    [(Slot(entries=Evaluation), "held out"), (Slot(entries=Evaluation), "a/b"), (Slot(section=Data), "a-b")],
)
def test_invalid_entry_and_argument_names_are_errors(slot, name):
    with pytest.raises(ConfigError, match=r"is not a valid name of an"):
        child(slot, name, f"somewhere.{name}")


def test_unknown_field_error_lists_the_fields_of_its_section():
    assert str(unknown_field("train.totl", Train)) == (
        "train.totl: unknown field. Did you mean train.total? Fields here: total, global_batch_size, seed, accumulate, "
        "memory_gib, approximate_accumulation, steps_per_dispatch, precision, ema_decay, remat, offload_optimizer."
    )


def test_unknown_field_error_suggests_fields_of_other_sections():
    with pytest.raises(UnknownFieldError, match=r"Did you mean optimizer.learning_rate[?]"):
        child(Slot(section=Train), "learning_rate", "train.learning_rate")
    assert "Did you mean train.seed?" in str(unknown_field("seed", Config))
    assert "Did you mean train.global_batch_size?" in str(unknown_field("batch_size", Config))
    assert "Did you mean optimizer.learning_rate?" in str(unknown_field("lr", Config))
    assert "Did you mean evaluations.a.data.target?" in str(unknown_field("evaluations.a.target", Evaluation))
    assert "Did you mean" not in str(unknown_field("zzz", Config))


def test_closed_paths_lists_the_fields_outside_tables():
    paths = list(closed_paths())
    assert {"name", "train", "train.total", "optimizer.groups"} <= set(paths)
    assert len(paths) == len(set(paths))


def test_check_value_converts_to_the_type_of_the_slot():
    assert check_value(slots(Optimizer)["learning_rate"], 1, "x") == 1.0
    assert type(check_value(slots(Optimizer)["learning_rate"], 1, "x")) is float
    assert check_value(slots(Checkpoint)["every"], None, "x") is None
    assert check_value(PLAIN, [1, [2, {"a": [3]}]], "x") == (1, (2, {"a": (3,)}))
    assert describe(slots(MeshSpec)["cpu_devices"]) == "an integer or text or None"


@pytest.mark.parametrize(
    ("section", "field", "value", "sentence"),
    [
        (Train, "seed", "a", "x: found 'a' (text), allowed is an integer."),
        (Train, "seed", None, "x: found None, allowed is an integer."),
        (Train, "seed", True, "x: found True, allowed is an integer."),
        (Train, "seed", 1.0, "x: found 1.0 (a number), allowed is an integer."),
        (Log, "tensorboard", 1, "x: found 1 (an integer), allowed is true or false."),
        (
            Train,
            "total",
            30,
            "x: found 30 (an integer), allowed is a duration. Write the unit too: '30 UNIT'. Units: steps, examples, ",
        ),
        (Optimizer, "clip_norm", "a", "x: found 'a' (text), allowed is a number or None."),
        (Optimizer, "learning_rate", float("nan"), "x: found nan. A config holds finite numbers."),
        (Data, "target", Slot, "Name a function or class by its dotted path: 'engine.config.fields.Slot'."),
    ],
)
def test_wrong_type_error_states_the_allowed_type(section, field, value, sentence):
    with pytest.raises(ConfigError) as error:
        check_value(slots(section)[field], value, "x")
    assert sentence in str(error.value)


@pytest.mark.parametrize("value", [{1, 2}, object(), b"x", {"a": {1.5: 2}}, [float("inf")], len])
def test_open_fields_accept_plain_values_only(value):
    with pytest.raises(ConfigError):
        check_value(PLAIN, value, "task.x")
