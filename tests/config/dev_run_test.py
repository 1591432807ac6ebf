import pytest

from engine.base.errors import ConfigError
from engine.config.dev_run import tiny
from engine.config.draft import defaults
from engine.config.override import apply
from engine.config.text import to_text
from engine.config.validation import validate


def config(*overrides):
    c = defaults()
    c.task = dict(target="convoy_zoo.models.digits.Digits", width=64)
    c.data = dict(target="convoy_zoo.models.digits.scans")
    c.evaluations.heldout = dict(data=dict(target="convoy_zoo.models.digits.scans"), every="5 epochs")
    c.hooks.plot = dict(target="models.plot.run")
    apply(c, overrides)
    return validate(c)


def lines(config):
    return dict(line.split(": ", 1) for line in to_text(config).splitlines())


def changes(*overrides):
    before, after = lines(config(*overrides)), lines(tiny(config(*overrides)))
    return {name: value for name, value in after.items() if before[name] != value}


def test_dev_run_config_has_two_steps_and_every_period_of_one_step():
    assert changes() == {
        "train.total": "2 steps",
        "train.global_batch_size": "8",
        "data.limit": "12",
        "checkpoint.every": "1 step",
        "evaluations.heldout.every": "1 step",
        "evaluations.heldout.data.limit": "12",
        "evaluations.heldout.batch_size": "8",
        "hooks.plot.every": "1 step",
        "log.every": "1 step",
    }


@pytest.mark.parametrize(
    ("overrides", "batch_size"),
    [
        (["train.global_batch_size=4"], 4),
        (["train.accumulate=2"], 8),
        (["train.global_batch_size=96", "train.accumulate=3"], 6),
        (["train.accumulate=16"], 16),
    ],
)
def test_dev_run_batch_is_a_multiple_of_accumulate(overrides, batch_size):
    assert tiny(config(*overrides)).train.global_batch_size == batch_size


def test_tiny_overrides_take_precedence():
    overrides = ["tiny.train.global_batch_size=4", "tiny.task.width=8", "tiny.evaluations.heldout.data.limit=3"]
    result = tiny(config(*overrides))
    assert result.train.global_batch_size == 4 and result.data.limit == 6
    assert result.task.arguments == {"width": 8} and result.evaluations["heldout"].data.limit == 3
    assert result.tiny == {}


def test_dev_run_never_increases_a_size():
    result = tiny(config("data.limit=3", "evaluations.heldout.batch_size=2"))
    assert result.data.limit == 3 and result.evaluations["heldout"].batch_size == 2


def test_dev_run_is_not_stopped_early():
    stop = tiny(config("stop.metric=heldout/loss", "stop.mode=min", "stop.target=100", "stop.patience=1")).stop
    assert (stop.metric, stop.mode, stop.target, stop.patience) == ("heldout/loss", "min", None, 3)


def test_invalid_tiny_override_is_a_config_error():
    with pytest.raises(ConfigError, match=r"train.accumulate: found 3, .* \(--fast-dev-run\)"):
        tiny(config("tiny.train.accumulate=3", "tiny.train.global_batch_size=8"))
