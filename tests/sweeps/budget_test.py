import pytest

from engine.base.errors import ConfigError
from engine.sweeps.budget import Budget


@pytest.mark.parametrize(
    ("text", "overrides"),
    [(None, []), ("", []), ("2000 steps", ["train.total=2000 steps"]), ("1.5 epochs", ["train.total=1.5 epochs"])],
)
def test_length_of_training_is_the_total_of_each_run(text, overrides):
    assert Budget.parse(text).overrides("configs.digits", []) == overrides


def test_time_is_no_total():
    budget = Budget.parse("10 minutes")
    assert budget.seconds == 600
    assert budget.overrides("configs.digits", []) == []


@pytest.mark.parametrize(("text", "flops"), [("1e15 flops", 1e15), ("250 FLOP", 250), ("1.5e+3flops", 1500)])
def test_flops_are_a_number(text, flops):
    assert Budget.parse(text).flops == flops


@pytest.mark.parametrize("text", ["0 steps", "0 flops", "1.2.3 flops", "1e999 flops", "2000", "many steps", "3 flips"])
def test_other_text_is_refused_with_examples(text):
    with pytest.raises(ConfigError, match=r"^--budget.*"):
        Budget.parse(text)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_flops_become_steps_of_this_run():
    overrides = ["task.width=16", "train.global_batch_size=32"]
    (found,) = Budget.parse("1e9 flops").overrides("convoy_zoo.configs.digits", overrides)
    steps = int(found.removeprefix("train.total=").removesuffix(" steps"))
    parameters = 64 * 16 + 16 * 16 + 16 * 10
    per_step = 6 * parameters * 32  # forward and backward pass, without the optimizer
    assert 0.3 < 1e9 / per_step / steps < 3


@pytest.mark.multiprocess
def test_config_that_the_child_refuses_is_named():
    with pytest.raises(ConfigError, match=r"the step of a run cannot be measured\. .*train\.totl"):
        Budget.parse("1e9 flops").overrides("convoy_zoo.configs.digits", ["train.totl=3"])
