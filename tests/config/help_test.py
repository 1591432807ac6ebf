import re

from engine.config.fields import slots
from engine.config.help import help_text
from engine.config.schema import (
    Checkpoint,
    Config,
    Data,
    Evaluation,
    Group,
    Hook,
    Log,
    MeshSpec,
    Optimizer,
    Profile,
    Train,
)


def test_every_field_has_a_line_with_type_default_and_comment():
    text = help_text()
    for section in (Data, Optimizer, Train, MeshSpec, Checkpoint, Evaluation, Group, Hook, Log, Profile):
        for name, slot in slots(section).items():
            if slot.types:
                assert re.search(rf"^  \S+\.{name}: [^=]+ = .+  \S+", text, re.MULTILINE), f"{section.__name__}.{name}"


def test_it_reads_as_the_schema_is_written():
    lines = help_text().splitlines()
    assert lines[0] == "All settings of a run."
    assert any(re.fullmatch(r"  train\.seed: int = 0 +of weights, order and randomness", line) for line in lines)
    assert "train: How long, how much at once, with which numbers." in lines
    assert any(
        re.fullmatch(r"  evaluations\.<name>\.every: str \| None = '1 epoch' +steps.*at the end only", line)
        for line in lines
    )
    assert any(re.fullmatch(r"  data\.<argument> +every other key of the section", line) for line in lines)
    assert any(re.fullmatch(r"  sharding\.rules\.<key>: any +logical axis -> mesh axis.*", line) for line in lines)
    assert "evaluations.<name>.data.*: as data.*" in lines


def test_every_section_is_there():
    text = help_text()
    for name, slot in slots(Config).items():
        assert re.search(rf"^ *{name}[.:]", text, re.MULTILINE), name
        assert slot.is_container or name == "name"
