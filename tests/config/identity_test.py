import pytest

from engine.config.draft import defaults
from engine.config.identity import CACHES, WEIGHTS, identity_differences, is_identity, schedule_change
from engine.config.override import apply
from engine.config.text import flatten
from engine.config.validation import validate


def config(*overrides):
    c = defaults()
    c.task = dict(target="convoy_zoo.models.digits.Digits", width=64)
    c.data = dict(target="convoy_zoo.models.digits.scans", split="train")
    c.optimizer.groups = dict(head=dict(match="^head"), rest=dict(match="."))
    c.evaluations.heldout = dict(data=dict(target="convoy_zoo.models.digits.scans", split="test"))
    apply(c, overrides)
    return validate(c)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("task.width=32", "task.width: 64 -> 32"),
        ("task.depth=2", "task.depth: (none) -> 2"),
        ("data.split=all", "data.split: train -> all"),
        ("data.shuffle=false", "data.shuffle: True -> False"),
        ("data.limit=10", "data.limit: None -> 10"),
        ("optimizer.learning_rate=0.1", "optimizer.learning_rate: 0.001 -> 0.1"),
        ("optimizer.groups.head.match=^top", "optimizer.groups.head.match: ^head -> ^top"),
        ("train.global_batch_size=64", "train.global_batch_size: 128 -> 64"),
        ("train.seed=1", "train.seed: 0 -> 1"),
        ("train.precision=bfloat16", "train.precision: float32 -> bfloat16"),
        ("train.ema_decay=0.99", "train.ema_decay: None -> 0.99"),
    ],
)
def test_identity_differences_lists_changed_identity_fields(override, line):
    assert identity_differences(config(), config(override)) == [line]


@pytest.mark.parametrize(
    "override",
    [
        "name=other", "train.total=3 epochs", "train.accumulate=2", "train.steps_per_dispatch=8",
        "mesh.fsdp=-1", "mesh.cpu_devices=8", "sharding.rules.mlp=fsdp", "data.threads=4",
        "data.workers=2", "data.prefetch=4", "checkpoint.every=3 steps", "checkpoint.best=heldout/accuracy",
        "evaluations.heldout.every=3 steps", "evaluations.heldout.data.limit=3", "evaluations={}",
        "hooks.plot.target=models.plot.run", "log.every=1 step", "profile.start=3", "cache.compiled=false",
        "tiny.train.seed=3",
    ],
)  # fmt: skip
def test_identity_differences_ignores_other_fields(override):
    assert identity_differences(config(), config(override)) == []


def test_order_of_groups_is_identity_but_order_of_arguments_is_not():
    old = config()
    c = defaults()
    c.task = dict(width=64, target="convoy_zoo.models.digits.Digits")
    c.data = dict(split="train", target="convoy_zoo.models.digits.scans")
    c.optimizer.groups = dict(rest=dict(match="."), head=dict(match="^head"))
    assert identity_differences(old, validate(c)) == ["optimizer.groups: head, rest -> rest, head"]


def test_identity_fields_of_train_are_exactly_these():
    decided = {name for name, _ in flatten(config()) if is_identity(name)}
    assert {name.partition(".")[0] for name in decided} == {"task", "data", "optimizer", "train"}
    assert {name for name in decided if name.startswith("train.")} == {
        "train.global_batch_size",
        "train.seed",
        "train.precision",
        "train.ema_decay",
    }


def test_schedule_change_reports_a_new_total():
    assert schedule_change(config(), config("train.total=20 epochs")) == (
        "train.total: 10 epochs -> 20 epochs changes the cosine learning-rate schedule, which ends at the last step: "
        "from here on the run follows the schedule of 20 epochs."
    )
    assert schedule_change(config(), config("train.total=10 epoch")) is None
    constant = "optimizer.schedule=constant"
    assert schedule_change(config(constant), config(constant, "train.total=20 epochs")) is None


def test_schedule_change_knows_which_schedules_follow_the_length():
    longer = "train.total=20 epochs"
    for free in ("constant", "inverse_sqrt", "optax.schedules.constant_schedule"):
        settings = [f"optimizer.schedule={free}", "optimizer.warmup=1 epoch"]
        settings += ["optimizer.schedule_arguments.value=1.0"] if "." in free else []
        assert schedule_change(config(*settings), config(*settings, longer)) is None
    restarts = ["optimizer.schedule=warm_restarts", "optimizer.schedule_arguments.first=2 epochs"]
    assert schedule_change(config(*restarts), config(*restarts, longer)) is None
    for follower in ("linear", "warmup_stable_decay", "one_cycle", "optax.schedules.cosine_decay_schedule"):
        settings = [f"optimizer.schedule={follower}"]
        settings += ["optimizer.schedule_arguments.init_value=1.0"] if "." in follower else []
        assert f"changes the {follower} learning" in str(schedule_change(config(*settings), config(*settings, longer)))
    group = ["optimizer.schedule=constant", "optimizer.groups.head.schedule=linear"]
    assert "changes the linear" in str(schedule_change(config(*group), config(*group, longer)))


def test_run_in_its_stable_phase_may_become_longer():
    stable = ("optimizer.schedule=warmup_stable_decay", "optimizer.schedule_arguments.decay=2 epochs")
    old, new = config(*stable), config(*stable, "train.total=20 epochs")
    examples = 1280  # 10 steps per epoch: the decay begins at step 80, then at step 180
    assert schedule_change(old, new, 80, examples) is None
    assert "warmup_stable_decay" in str(schedule_change(old, new, 81, examples))
    assert "warmup_stable_decay" in str(schedule_change(new, old, 81, examples))
    assert "warmup_stable_decay" in str(schedule_change(old, new, 80, 0)), "the size of the dataset is not known"


def test_decay_may_change_while_it_has_not_begun():
    settings = ("optimizer.schedule=warmup_stable_decay", "optimizer.groups.head.match=^head")
    old = config(*settings)
    new = config(*settings, "optimizer.schedule_arguments={'decay': '3 epochs', 'shape': 'sqrt'}")
    examples = 1280  # 10 steps per epoch: the decay begins at step 80, then at step 70
    assert identity_differences(old, new) == []
    assert schedule_change(old, new, 70, examples) is None
    assert str(schedule_change(old, new, 71, examples)).startswith(
        "optimizer.schedule_arguments.decay: (default) -> 3 epochs changes the warmup_stable_decay"
    )
    cosine = config("optimizer.schedule=cosine")
    assert "optimizer.schedule_arguments.decay: (none) -> 3 epochs" in identity_differences(cosine, new)
    group = [f"optimizer.groups.head.{x}" for x in ("match=.", "schedule=warmup_stable_decay")]
    later = config(*group, "optimizer.groups.head.schedule_arguments.decay=1 epoch")
    assert schedule_change(config(*group), later, 80, examples) is None
    assert "optimizer.groups.head.schedule_arguments.decay" in str(schedule_change(config(*group), later, 81, examples))


def test_approximate_accumulation_makes_the_number_of_microbatches_part_of_the_run():
    flag, two, four = "train.approximate_accumulation=True", "train.accumulate=2", "train.accumulate=4"
    assert identity_differences(config(flag, two), config(flag, four)) == ["train.accumulate: 2 -> 4"]
    assert identity_differences(config(), config(flag, four)) == ["train.accumulate: 1 -> 4"]
    assert identity_differences(config(flag, four), config(two)) == ["train.accumulate: 4 -> 2"]
    assert identity_differences(config(four), config(flag, four)) == [], "a run of a release without the flag"
    assert identity_differences(config(two), config(four)) == []


def test_cache_of_tags_may_move_but_an_argument_of_that_name_of_another_source_may_not():
    def weighted(*overrides):
        c = defaults()
        c.task = dict(target="convoy_zoo.models.digits.Digits", width=64)
        source = dict(target="x.Own", cache="a")
        c.data = dict(target="engine.Weighted", source=source, tags="label", balance="class")
        apply(c, overrides)
        return validate(c)

    assert identity_differences(weighted(), weighted("data.cache=tags.npz")) == []
    assert identity_differences(weighted("data.cache=tags.npz"), weighted("data.cache=other.npz")) == []
    assert identity_differences(weighted(), weighted("data.source.cache=b")) == ["data.source.cache: a -> b"]


@pytest.mark.parametrize(
    ("override", "only"),
    [
        ("data.weights.b=2", True),
        ("data.sources.a.balance={'0 steps': 'natural', '1 epoch': 'class'}", True),
        ("data.sources.a.threshold=0.1", True),
        ("data.interpolate=True", True),
        ("data.sources.a.tags=city", True),
        ("data.sources.a.source.target=x.New", False),
        ("data.sources.b.weights=heavy", False),  # an argument of another source
        ("train.seed=3", False),
    ],
)
def test_change_of_weights_is_distinguished_from_other_changes(override, only):
    def mixture(*overrides):
        c = defaults()
        c.task = dict(target="convoy_zoo.models.digits.Digits", width=64)
        own = dict(target="engine.Weighted", source=dict(target="x.Own"), tags="label", balance="class")
        other = dict(target="x.Other", weights="light")
        c.data = dict(target="engine.Mixture", sources=dict(a=own, b=other), weights=dict(a=1, b=1))
        apply(c, overrides)
        return validate(c)

    old, new = mixture(), mixture(override)
    assert identity_differences(old, new)
    ignored = CACHES + WEIGHTS
    assert (not identity_differences(old, new, ignored), not identity_differences(new, old, ignored)) == (only, only)
