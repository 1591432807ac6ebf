"""The text of a comparison."""

import math

from engine.experiments import compare_table
from engine.experiments.comparison import Basis, Change, Comparison, Difference, Variant
from engine.experiments.record import RunRecord
from engine.experiments.statistics import Interval

VARIANTS = [Variant(name, (RunRecord(path=name, state="done"),), (0,)) for name in "ab"]


def difference(part: str, p: float, low: float = 0.1, adjusted: float = math.nan, groups: int = 200) -> Difference:
    return Difference(
        variant=1,
        evaluation="val",
        part=part,
        metric="error",
        examples=200,
        groups=groups,
        first=1.0,
        second=1.25,
        higher_is_better=False,
        basis=Basis.NONE if math.isnan(low) else Basis.EXAMPLES,
        interval=Interval(0.25, low, 0.4, p),
        adjusted_p=adjusted,
    )


def test_text_has_what_differs_and_each_result_with_its_interval():
    found = Comparison(
        variants=VARIANTS,
        settings={"train.seed": (0, 1)},
        code={"jax": ("1", None)},
        results=[
            difference("", 0.0001),
            difference("near", 0.01, adjusted=0.02, groups=40),
            difference("far", math.nan, low=math.nan, groups=29),
            difference("none", math.nan, low=math.nan),  # such as a class without labels
        ],
        changes=[
            Change(
                variant=1, evaluation="val", metric="error", index=7, tags={"scene": "x"}, first=1.0, second=3.0,
                figures=("", "b/figures/val/9/0-example-7.png"),
            )
        ],
        notes=["a note."],
    )  # fmt: skip
    assert (
        compare_table.text(found)
        == """\
different settings  a  b
train.seed          0  1

different code  a  b
jax             1  -

result     a  b     difference  95 % interval  over      p
val/error  1  1.25  +0.25       +0.1 to +0.4   examples  < 0.001 * worse

val/error by slice  examples  a  b     difference  95 % interval  over       p (Holm)
near                200       1  1.25  +0.25       +0.1 to +0.4   40 groups  0.020 * worse
far                 200       1  1.25  +0.25       too few        -          -
none                200       1  1.25  +0.25       -              -          -

val: most changed by error  scene  a  b  change
example 7                   x      1  3  +2
figure: b/figures/val/9/0-example-7.png

Over examples (paired bootstrap): how sure the difference of these trained models is on other examples of this kind. \
It says nothing about seeds: another seed of the same setting may differ by more.

a note."""
    )


def test_seeds_of_a_variant_are_named():
    runs = (RunRecord(path="a", state="done"),) * 3
    found = Comparison(variants=[Variant("a", runs, (0, 1, 2)), VARIANTS[1]])
    assert compare_table.text(found).startswith("a: 3 seeds, 0, 1, 2\n\nsettings: the same\n\nThere is no result")


def test_each_variant_has_its_own_tables():
    found = Comparison(
        variants=[*VARIANTS, Variant("c", (RunRecord(path="c", state="done"),), (0,))],
        results=[difference("", 0.5), difference("", 0.5).__class__(**{**vars(difference("", 0.5)), "variant": 2})],
    )
    heads = [line.split()[:3] for line in compare_table.text(found).splitlines() if line.startswith("result")]
    assert heads == [["result", "a", "b"], ["result", "a", "c"]]
