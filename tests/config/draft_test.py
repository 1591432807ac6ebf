# A draft makes sections of the dicts that are assigned to it, which a type checker cannot know.
# pyright: reportAttributeAccessIssue=false
import copy
import pickle

import ml_collections
import pytest

from engine.base.errors import ConfigError, UnknownFieldError
from engine.config.draft import Draft, defaults, draft_of, unfreeze
from engine.config.schema import Config
from engine.config.validation import validate


def test_defaults_returns_a_config_dict_with_every_schema_field():
    c = defaults()
    assert isinstance(c, ml_collections.ConfigDict)
    assert c.to_dict() == unfreeze(Config())
    assert c.train.total == "10 epochs" and c.evaluations.to_dict() == {}


def test_writing_or_reading_an_unknown_field_raises():
    c = defaults()
    with pytest.raises(ConfigError, match=r"train.totl: unknown field. Did you mean train.total\?"):
        c.train.totl = "1 epoch"
    with pytest.raises(ConfigError, match=r"train.totl: unknown field"):
        _ = c.train.totl
    with pytest.raises(
        ConfigError, match=r"evaluations.heldout.evry: unknown field. Did you mean evaluations.heldout.every"
    ):
        c.evaluations.heldout = dict(evry="1 epoch")
    with pytest.raises(ConfigError, match=r"task.width: is read but was not set. Set here: target."):
        _ = c.task.width
    assert not hasattr(c.train, "totl")


def test_field_keeps_its_type_after_it_was_none():
    c = defaults()
    c.data.limit = None
    with pytest.raises(ConfigError, match=r"data.limit: found 'all' \(text\), allowed is an integer or None"):
        c.data.limit = "all"
    c.data.limit = 10
    c.optimizer.clip_norm = 2
    assert c.data.limit == 10 and type(c.optimizer.clip_norm) is float


def test_only_open_sections_accept_new_names():
    c = defaults()
    c.task.width = 64
    c.task.encoder = dict(layers=[1, 2])
    c.task.encoder.heads = 4
    c.sharding.rules.mlp = ("data", "fsdp")
    c.tiny = {"train.global_batch_size": 8}
    assert c.task.to_dict() == {"target": "", "width": 64, "encoder": {"layers": (1, 2), "heads": 4}}
    with pytest.raises(UnknownFieldError):
        c.extra = 1


def test_assigning_a_dict_resets_a_section_to_its_defaults_first():
    c = defaults()
    c.data.limit, c.data.split = 10, "train"
    c.data = dict(target="a.b", threads=4)
    assert c.data.threads == 4 and c.data.limit is None and "split" not in c.data
    c.evaluations.heldout = dict(data=dict(target="a.b"))
    assert c.evaluations.heldout.data.shuffle is True and c.evaluations.heldout.every == "1 epoch"
    with pytest.raises(
        ConfigError, match=r"train: found 3 \(an integer\), allowed is a section. Set one of its fields, or a dict"
    ):
        c.train = 3
    with pytest.raises(ConfigError, match=r"evaluations: found None, allowed is a dict. Write \{\} for an empty one."):
        c.evaluations = None


def test_assigning_a_section_copies_it():
    c = defaults()
    c.data = dict(target="a.b", split="train")
    c.evaluations.heldout = dict(data=c.data)
    c.evaluations.heldout.data.split = "test"
    assert c.data.split == "train"


def test_keys_keep_their_insertion_order():
    c = defaults()
    c.optimizer.groups = dict(zebra=dict(match=r"z"), ant=dict(match=r"a"))
    assert list(c.optimizer.groups) == ["zebra", "ant"]


def test_field_reference_is_resolved_when_assigned():
    c = defaults()
    c.train.seed = ml_collections.FieldReference(7)
    assert c.train.seed == 7


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c)), lambda c: c.copy_and_resolve_references()]
)
def test_copies_of_a_draft_check_the_schema(copied):
    c = defaults()
    c.task.width = 64
    other = copied(c)
    other.task.width = 32
    assert isinstance(other, Draft) and c.task.width == 64
    with pytest.raises(ConfigError, match=r"train.totl: unknown field"):
        other.train.totl = 1


def test_update_checks_the_schema():
    c = defaults()
    c.update({"train": {"seed": 3}, "task": {"target": "a.b", "width": 1}})
    assert c.train.seed == 3 and c.train.total == "10 epochs" and c.task.width == 1
    with pytest.raises(ConfigError, match=r"train.sed: unknown field"):
        c.update({"train": {"sed": 3}})


def test_config_round_trips_through_a_draft():
    c = defaults()
    c.task = dict(target="a.b", sizes=[1, 2], encoder=dict(layers=3, weights={0: 1.5}))
    c.data = dict(target="a.c")
    config = validate(c)
    assert validate(draft_of(config)) == config
    assert draft_of({"train": {"seed": 3}}).train.seed == 3


def test_integers_that_python_cannot_print_are_refused_by_name():
    c = defaults()
    for value in (10**5000, (10**5000,), {"a": 10**5000}, {10**5000: 1}):
        with pytest.raises(ConfigError, match=r"^task\.x"):
            c.task.x = value
        with pytest.raises(ConfigError, match=r"^train\.seed"):
            c.train.seed = value
        with pytest.raises(ConfigError, match=r"^mesh: |^mesh\."):
            c.mesh = value


def test_fields_of_the_schema_cannot_be_deleted():
    c = defaults()
    c.task.width = 1
    del c.task.width
    with pytest.raises(ConfigError, match=r"^train: cannot be deleted. Every config has this field."):
        del c.train
    with pytest.raises(ConfigError, match=r"^train\.total: cannot be deleted"):
        del c.train.total
    assert validate(dict(c.to_dict(), task={"target": "a.b"}, data={"target": "a.b"})).train.seed == 0
