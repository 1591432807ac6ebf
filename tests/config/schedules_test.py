"""Arguments of the schedules, and which schedules follow the length of the run."""

import pytest

from engine.base.duration import RunSize
from engine.base.errors import ConfigError
from engine.config.draft import defaults
from engine.config.override import apply
from engine.config.schedules import check_functions, decay_steps, followers
from engine.config.text import from_text, to_text
from engine.config.validation import validate


def config(*overrides):
    c = defaults()
    c.task = dict(target="convoy_zoo.models.digits.Digits")
    c.data = dict(target="convoy_zoo.models.digits.scans")
    c.optimizer.groups = dict(head=dict(match="^head"))
    apply(c, [f"optimizer.{text}" for text in overrides])
    return validate(c)


WSD = "schedule=warmup_stable_decay"
WHERE = "optimizer.schedule_arguments"


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["schedule_arguments.decay=0.2"], f"{WHERE}.decay: the schedule cosine takes no such argument. It takes: no "),
        ([WSD, "schedule_arguments.deca=0.2"], f"{WHERE}.deca: ... It takes: decay, shape. Did you mean decay?"),
        ([WSD, "schedule_arguments.decay=2"], f"{WHERE}.decay: found 2 ... a fraction of the run in (0, 1]"),
        ([WSD, "schedule_arguments.decay=true"], f"{WHERE}.decay: found True. Allowed: a duration, or a fraction"),
        ([WSD, "schedule_arguments.decay=2 hours"], f"{WHERE}.decay: found '2 hours'"),
        ([WSD, "schedule_arguments.decay=0 steps"], f"{WHERE}.decay: found '0 steps'. Write a length above 0"),
        ([WSD, "schedule_arguments.shape=sqr"], f"{WHERE}.shape: found 'sqr' (text). Allowed: linear, cosine, sqrt."),
        (["schedule=piecewise"], f"{WHERE}.scales: is missing, piecewise needs it"),
        (["schedule=piecewise", "schedule_arguments.scales=3"], f"{WHERE}.scales: found 3 ... duration -> factor"),
        (["schedule=piecewise", "schedule_arguments.scales={'x': 1}"], f"{WHERE}.scales.x: found 'x', not a duration"),
        (
            ["schedule=piecewise", "schedule_arguments.scales={'1 epoch': -1}"],
            f"{WHERE}.scales.1 epoch: found -1 ... a number of at least 0",
        ),
        (["schedule=inverse_sqrt"], f"{WHERE}.timescale: is missing, inverse_sqrt needs it"),
        (["schedule=inverse_sqrt", "schedule_arguments.timescale=5"], f"{WHERE}.timescale: found 5 ... a duration"),
        (["schedule=one_cycle", "schedule_arguments.rise=2"], f"{WHERE}.rise: found 2 ... a fraction in [0, 1]."),
        (["schedule=one_cycle", "schedule_arguments.start=a"], f"{WHERE}.start: found 'a'"),
        (["schedule=one_cycle", "schedule_arguments.shape=sqrt"], f"{WHERE}.shape: ... Allowed: cosine, linear."),
        (["schedule=warm_restarts"], f"{WHERE}.first: is missing, warm_restarts needs it"),
        (["schedule=warm_restarts", "schedule_arguments.first=0 steps"], f"{WHERE}.first: found '0 steps'"),
        (
            ["schedule=warm_restarts", "schedule_arguments.first=2 epochs", "schedule_arguments.factor=1.5"],
            f"{WHERE}.factor: found 1.5 ... Allowed: a whole number of at least 1.",
        ),
        (
            ["groups.head.schedule_arguments.decay=0.2"],
            "optimizer.groups.head.schedule_arguments: is set, but schedule is not. ",
        ),
        (
            ["groups.head.schedule=linear", "groups.head.schedule_arguments.decay=0.2"],
            "optimizer.groups.head.schedule_arguments.decay: the schedule linear takes no such argument",
        ),
    ],
)  # fmt: skip
def test_wrong_argument_is_a_config_error(overrides, text):
    with pytest.raises(ConfigError) as error:
        config(*overrides)
    for part in text.split(" ... "):
        assert part in str(error.value)


def test_schedules_survive_the_text_of_a_config():
    found = config(
        "schedule=piecewise", "schedule_arguments.scales={'1 epoch': 0.1, '20 steps': 0.01}", "groups.head.every=2",
        "groups.head.schedule=optax.constant_schedule", "groups.head.schedule_arguments.value=0.5",
        "groups.head.target=optax.sgd", "groups.head.momentum=0.9",
    )  # fmt: skip
    assert found.optimizer.groups["head"].arguments == {"momentum": 0.9}
    assert from_text(to_text(found), "config.txt") == found


def test_group_without_a_setting_has_that_of_the_optimizer():
    found = config(WSD, "schedule_arguments.decay=0.5", "b1=0.8", "groups.head.b2=0.9", "final_scale=0.1").optimizer
    head = found.of_group("head")
    assert (head.target, head.arguments) == (found.target, {"b1": 0.8, "b2": 0.9})
    assert (head.schedule, head.schedule_arguments, head.final_scale) == (found.schedule, {"decay": 0.5}, 0.1)
    own = config(WSD, "schedule_arguments.decay=0.5", "b1=0.8", "groups.head.target=optax.sgd",
                 "groups.head.schedule=linear").optimizer.of_group("head")  # fmt: skip
    assert (own.target, own.arguments, own.schedule, own.schedule_arguments) == ("optax.sgd", {}, "linear", {})


def test_decay_is_at_most_the_steps_after_the_warmup():
    for decay, warmup, expected in (("0.25", "0 steps", 25), ("30 steps", "80 steps", 20), ("1 epoch", "0 steps", 10)):
        section = config(WSD, f"schedule_arguments.decay={decay}", f"warmup={warmup}").optimizer
        assert decay_steps(section, RunSize(8, 80, 100)) == expected


def test_schedules_that_depend_on_the_total_follow_it():
    assert list(followers(config().optimizer)) == ["optimizer", "optimizer.groups.head"]
    one = config("schedule=constant", "groups.head.schedule=linear")
    assert list(followers(one.optimizer)) == ["optimizer.groups.head"]
    own = ["groups.head.schedule=constant", "schedule=optax.schedules.linear_schedule"]
    own += ["schedule_arguments.init_value=1", "schedule_arguments.end_value=0"]
    assert list(followers(config(*own).optimizer)) == ["optimizer"]
    assert list(followers(config(*own, "schedule_arguments.transition_steps=5").optimizer)) == []


def test_functions_of_schedules_are_checked_before_devices_are_used():
    check_functions(config().optimizer)
    with pytest.raises(ConfigError, match=r"optimizer.groups.head.schedule: found 'optax.nothing'"):
        check_functions(config("groups.head.schedule=optax.nothing").optimizer)
