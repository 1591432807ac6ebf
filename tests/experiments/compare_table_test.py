"""The text of a comparison."""

import math

from engine.experiments import compare_table
from engine.experiments.compare import Comparison, Difference
from engine.experiments.record import RunRecord
from engine.experiments.statistics import Interval

RUNS = (RunRecord(path="a", state="done"), RunRecord(path="b", state="done"))


def difference(part: str, p: float, low: float = 0.1, adjusted: float = math.nan) -> Difference:
    interval = Interval(0.25, low, 0.4, p)
    return Difference("val", part, "error", 200, 1.0, 1.25, interval, adjusted)


def test_text_has_what_differs_and_each_result_with_its_interval():
    found = Comparison(
        RUNS,
        {"train.seed": (0, 1)},
        {"jax": ("1", None)},
        {},
        [difference("", 0.0001), difference("near", 0.01, adjusted=0.02), difference("far", math.nan, low=math.nan)],
        ["a note."],
    )
    assert (
        compare_table.text(found)
        == """\
different settings  a  b
train.seed          0  1

different code  a  b
jax             1  -

result     a  b     difference  95 % interval  p
val/error  1  1.25  +0.25       +0.1 to +0.4   < 0.001 *

val/error by slice  examples  a  b     difference  95 % interval  p (Holm)
near                200       1  1.25  +0.25       +0.1 to +0.4   0.020 *
far                 200       1  1.25  +0.25       too few        -

a note."""
    )


def test_equal_settings_and_missing_results_are_said():
    text = compare_table.text(Comparison(RUNS, {}, {}, {}, [], []))
    assert text == "settings: the same\n\nThere is no result that both runs have."
