import dataclasses

import pytest

from engine.base.errors import ConfigError, FieldError
from engine.config import schema
from engine.config.fields import check_value, slots
from engine.config.setting import AUTO, AXIS_SIZE, CPU_DEVICES, DECAYED, REMAT, SCHEDULE, SIZE, WORKERS, listed_roles
from tests.config.schedules_test import config

DATACLASSES = [value for value in vars(schema).values() if dataclasses.is_dataclass(value)]
SECTIONS = [section for section in DATACLASSES if section.__module__ == schema.__name__]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_has_help_and_every_restricted_field_a_rule(section):
    fields = {f"{section.__name__}.{name}": slot for name, slot in slots(section).items() if slot.section is None}
    assert [name for name, slot in fields.items() if not slot.setting.help] == []
    unchecked = [
        name for name, slot in fields.items() if slot.types and bool not in slot.types and not slot.setting.rule
    ]
    assert unchecked == ([f"{section.__name__}.checkpoint"] if issubclass(section, schema.InitSource) else [])


@pytest.mark.parametrize(
    ("section", "field", "value", "sentence"),
    [
        ("Train", "global_batch_size", 0, "allowed is at least 1"),
        ("Train", "seed", 2**32, "allowed is at least 0 and less than 4294967296"),
        ("Train", "ema_decay", 1.0, "allowed is at least 0 and less than 1"),
        ("Train", "precision", "float16", "Allowed: float32, bfloat16, float8, int8. Did you mean "),
        ("Train", "total", "10 minutes", "Units here: steps, examples, epochs."),
        ("Train", "total", "0 steps", "which has no length. Use '1 step' for the shortest."),
        ("Optimizer", "schedule", "cosin", "or the dotted path of a function. Did you mean cosine?"),
        ("Optimizer", "schedule", "optax.2", "not a dotted path"),
        ("Optimizer", "trainable", "(", "not a regular expression. Python reports: "),
        ("Optimizer", "clip_norm", 0.0, "allowed is more than 0"),
        ("Optimizer", "decay", "biases", "Allowed: matrices, all, none or roles: "),
        ("Group", "match", "[", "not a regular expression"),
        ("MeshSpec", "fsdp", 0, "Allowed: a number of devices, at most 1048576, or -1 for all remaining devices."),
        ("DcnMeshSpec", "data", -2, "Allowed: a number of devices, at most 1048576, or -1 for all remaining devices."),
        ("MeshSpec", "preset", "fdsp", "Did you mean fsdp?"),
        ("MeshSpec", "cpu_devices", "many", "Allowed: 1 to 4096 devices, auto, or None."),
        ("MeshSpec", "cpu_devices", 0, "Allowed: 1 to 4096 devices, auto, or None."),
        ("MeshSpec", "cpu_devices", 100_000, "Allowed: 1 to 4096 devices, auto, or None."),
        ("Data", "workers", 100_000, "found 100000, allowed is at least 0 and less than 1025"),
        ("Data", "workers", "autos", "found 'autos'. Allowed: a number of processes, or auto."),
        ("Data", "prefetch", -1, "found -1, allowed is at least 0"),
        ("Data", "prefetch", "all", "found 'all'. Allowed: a number of dispatches, or auto."),
        ("Checkpoint", "best", "accuracy", "Write evaluation/metric or hook/metric, such as 'heldout/accuracy'."),
        ("Checkpoint", "best_mode", "lowest", "Allowed: auto, max, min."),
        ("Checkpoint", "keep_latest", 0, "allowed is at least 1"),
        ("Log", "progress", "bars", "Allowed: auto, bar, lines, none. Did you mean bar?"),
        ("Log", "every", "3 minutes", "Units here: steps, examples, epochs."),
        ("Data", "target", "digits", "not a dotted path. Write package.module.Name."),
        ("Data", "limit", 0, "allowed is at least 1"),
        ("Cache", "max_gib", 0.0, "allowed is more than 0"),
        ("Cache", "max_gib", 1e308, "allowed is more than 0 and less than 1048576"),
        ("Train", "global_batch_size", 2**31, "allowed is at least 1 and at most 2147483647"),
        ("Optimizer", "learning_rate", 1e31, "allowed is at least 0 and at most 1e+30"),
        ("MeshSpec", "fsdp", 2**21, "Allowed: a number of devices, at most 1048576, or -1"),
        ("Optimizer", "trainable", "a{99999999999}", "not a regular expression"),
        ("Config", "name", "a/b", "It is the name of a folder"),
        ("Profile", "start", -1, "allowed is at least 0"),
    ],
)
def test_out_of_range_error_states_what_is_allowed(section, field, value, sentence):
    with pytest.raises(ConfigError) as error:
        check_value(slots(getattr(schema, section))[field], value, "x")
    assert str(error.value).startswith(f"x: found {value!r}") and sentence in str(error.value)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("Optimizer", "warmup", "0 steps"),
        ("Checkpoint", "every", "10 minutes"),
        ("Checkpoint", "every", None),
        ("MeshSpec", "cpu_devices", "auto"),
        ("MeshSpec", "data", -1),
        ("MeshSpec", "context", 2),
        ("DcnMeshSpec", "data", -1),
        ("Train", "ema_decay", None),
    ],
)
def test_allowed_values_are_accepted(section, field, value):
    assert check_value(slots(getattr(schema, section))[field], value, "x") == value


@pytest.mark.parametrize(
    ("rule", "allowed", "refused"),
    [
        (AXIS_SIZE, [-1, 1, 8], [0, -2, "8"]),
        (CPU_DEVICES, [AUTO, 1], [0, "many"]),
        (WORKERS, [AUTO, 0, 4], [-1, "many"]),
        (SIZE, [AUTO, 1], [0, "many"]),
        (SCHEDULE, ["cosine", "package.module.function"], ["cosin"]),
        (REMAT, ["none", "save:attention", "offload:a,b"], ["some", "save:"]),
    ],
)
def test_rule_allows_and_refuses(rule, allowed, refused):
    for value in allowed:
        rule.check(value, "train.x")
    for value in refused:
        with pytest.raises(FieldError, match=r"train\.x"):
            rule.check(value, "train.x")


def test_list_of_roles_is_split_at_commas():
    assert listed_roles("matrix, head ,norm") == ("matrix", "head", "norm")
    assert listed_roles("matrices") == DECAYED
    assert config("decay=matrix, head").optimizer.decay == "matrix, head"


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "decay=matrx",
            "optimizer.decay: found 'matrx' (optimizer.decay=matrx). Allowed: matrices, all, none or ",
        ),
        (
            "groups.head.roles=heads",
            "optimizer.groups.head.roles: found 'heads' (optimizer.groups.head.roles=heads). Allowed: ",
        ),
        ("groups.head.match=", "optimizer.groups.head.match: is empty. Give a regular expression of parameter paths, "),
    ],
)
def test_unknown_role_is_refused(override, text):
    with pytest.raises(ConfigError) as error:
        config(override)
    assert str(error.value).startswith(text)
