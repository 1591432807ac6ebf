import math
from fractions import Fraction

import pytest

from engine.base.duration import Duration, Period, RunSize
from engine.base.errors import ConfigError


def parse(text):
    return Duration.parse(text, "train.total")


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("30 epochs", 30, "epochs"),
        ("1 epoch", 1, "epochs"),
        ("1_000 steps", 1000, "steps"),
        ("500steps", 500, "steps"),
        ("0.1 epochs", Fraction(1, 10), "epochs"),
        ("1e6 examples", 1_000_000, "examples"),
        (" 10  Minutes ", 10, "minutes"),
        ("1.5 hours", Fraction(3, 2), "hours"),
        ("0 steps", 0, "steps"),
    ],
)
def test_parse_reads_a_number_and_a_unit(text, value, unit):
    assert parse(text) == Duration(value, unit)
    assert type(parse(text).value) is type(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("3", "train.total: found '3', not a duration. Write a number and a unit, such as '3 epochs' or '500 steps'."),
        ("", "train.total: found '', not a duration."),
        (
            "3 epcohs",
            "unknown unit 'epcohs'. Units: steps, examples, epochs, seconds, minutes, hours. Did you mean epoch",
        ),
        ("-1 steps", "found '-1 steps', which is negative"),
        ("1.5 steps", "found '1.5 steps', not a whole number of steps. Write a whole number of steps."),
        ("1__0 steps", "'1__0' is not a number"),
        ("1e300 hours", "train.total: found '1e300 hours', which is too large. Allowed: less than 1e15."),
        ("1e999999999 epochs", "found '1e999999999 epochs', which is too large"),
        ("1e9 hours", "found '1e9 hours', which is too long. Allowed: at most 277777 hours."),
        ("1e-300 epochs", "which has too many digits. Allowed: at most 13 digits after the decimal point."),
        ("nan epochs", "found 'nan epochs', not a duration."),
    ],
)
def test_parse_error_lists_what_is_allowed(text, sentence):
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert sentence in str(error.value)


def test_durations_print_in_canonical_form():
    written = ("1 epochs", "30 epoch", "0.5 epochs", "1_000 steps", "1e6 examples", "1e-7 epochs")
    printed = ["1 epoch", "30 epochs", "0.5 epochs", "1000 steps", "1000000 examples", "0.0000001 epochs"]
    assert [str(parse(text)) for text in written] == printed


@pytest.mark.parametrize("text", ["0.1234567890123 epochs", "1e14 examples", "0.3 hours", "1e-7 epochs"])
def test_printed_duration_parses_to_the_same_value(text):
    assert parse(str(parse(text))) == parse(text)


def test_epochs_convert_to_steps_rounded_up():
    assert parse("30 epochs").steps(64, 1437) == math.ceil(30 * 1437 / 64) == 674
    assert parse("1 examples").steps(64, 1437) == 1
    assert parse("7 steps").steps(64, 1437) == 7
    assert parse("0.1 epochs").examples(64, 1797) == Fraction(1797, 10)


def test_conversion_to_steps_has_no_floating_point_error():
    assert parse("0.1 epochs").steps(1, 30) == 3  # 0.1 * 30 is 3.0000000000000004 in floats
    assert parse(f"{10**14 + 1} examples").steps(1, 1) == 10**14 + 1


def test_time_units_convert_to_seconds_only():
    assert parse("10 minutes").is_clock and parse("10 minutes").seconds == 600
    assert not parse("10 steps").is_clock
    with pytest.raises(ConfigError, match=r"'10 minutes' is not a number of examples. Units of the data: steps"):
        parse("10 minutes").steps(1, 1)
    with pytest.raises(ConfigError, match=r"'1 epoch' has no length in seconds"):
        _ = parse("1 epoch").seconds
    with pytest.raises(ConfigError, match=r"'1 epoch' of a dataset of 0 examples has no length"):
        parse("1 epoch").steps(1, 0)


@pytest.mark.parametrize(
    "text", ["1 step", "3 steps", "1 epoch", "0.5 epochs", "0.3 epochs", "100 examples", "7 examples"]
)
@pytest.mark.parametrize(("batch_size", "size", "total"), [(64, 1437, 60), (10, 100, 37), (8, 3, 20)])
def test_period_is_due_at_the_first_step_that_reaches_a_multiple(text, batch_size, size, total):
    period = Period(parse(text), batch_size, size, total)
    for step in range(1, total + 1):
        assert period.start(step) == max((s for s in range(1, step) if period.due(s)), default=0)
    length = parse(text).examples(batch_size, size)
    reached, expected = 0, []
    for step in range(1, total + 1):
        if step * batch_size // length > reached or step == total:
            expected.append(step)
        reached = step * batch_size // length
    assert [step for step in range(total + 1) if period.due(step)] == expected


@pytest.mark.parametrize("duration", [None, "4 steps", "0.3 epochs", "100 examples"])
def test_next_after_returns_the_next_due_step(duration):
    period = Period(duration and parse(duration), 10, 117, total_steps=50)
    due = [step for step in range(51) if period.due(step)]
    for step in range(50):
        assert period.next_after(step) == next(other for other in due if other > step)
    assert period.next_after(50) == 50


def test_period_none_is_due_at_the_last_step_only():
    period = Period(None, 10, 100, total_steps=5)
    assert [step for step in range(6) if period.due(step)] == [5]
    assert not Period(None, 10, 100, total_steps=0).due(0)


def test_run_size_builds_periods():
    size = RunSize(batch_size=10, dataset_size=40, total_steps=9)
    assert [step for step in range(10) if size.period(parse("1 epoch")).due(step)] == [4, 8, 9]
    assert [step for step in range(10) if size.period(None).due(step)] == [9]


def test_zero_period_is_an_error():
    with pytest.raises(ConfigError, match=r"A period of '0 steps' has no length. Use '1 step' for every step"):
        Period(parse("0 steps"), 10, 100, 5)
