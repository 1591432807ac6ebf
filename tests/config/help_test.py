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


def test_help_shows_type_default_and_text_of_every_field():
    text = help_text()
    for section in (Data, Optimizer, Train, MeshSpec, Checkpoint, Evaluation, Group, Hook, Log, Profile):
        for name, slot in slots(section).items():
            if slot.types:
                assert re.search(rf"^  \S+\.{name}: [^=]+ = .+  \S+", text, re.MULTILINE), f"{section.__name__}.{name}"


def test_help_lines_match_the_schema():
    lines = [line[:2] + re.sub("  +", "  ", line[2:]) for line in help_text().splitlines()]
    assert lines[0] == "All settings of a run."
    assert "train: Length, batch size, seed, precision and memory use of the training." in lines
    assert {
        "  train.seed: int = 0  Seed of initial weights, data order and all random numbers. "
        "Allowed: at least 0 and less than 4294967296.",
        "  evaluations.<name>.every: duration | None = '1 epoch'  Period; None evaluates at the end only. "
        "Units: steps, examples, epochs.",
        "  log.progress: str = 'auto'  How progress is shown on the terminal. Allowed: auto, bar, lines, none.",
        "  data.<argument>  Every other key of the section is an argument of the target.",
        "  sharding.rules.<key>: any  Logical axis -> mesh axis, tuple of mesh axes, or None.",
        "evaluations.<name>.data.*: as data.*",
    } <= set(lines)


def test_help_covers_every_section():
    text = help_text()
    for name, slot in slots(Config).items():
        assert re.search(rf"^ *{name}[.:]", text, re.MULTILINE), name
        assert slot.is_container or name == "name"
