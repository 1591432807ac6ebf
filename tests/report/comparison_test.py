"""The comparison in a report: names of variants, bounds, and texts instead of values that JSON lacks."""

import math

from engine.base import json_text
from engine.experiments.comparison import Basis, Change, Comparison, Difference, Variant
from engine.experiments.record import RunRecord
from engine.experiments.statistics import Interval
from engine.report.comparison import MOST_SLICES, comparison_data
from engine.report.images import Budget
from tests.report.made import write_figure


def variant(path: str, seeds: int = 1) -> Variant:
    return Variant(path, [RunRecord(path=f"{path}{seed}", state="done") for seed in range(seeds)], list(range(seeds)))


def difference(part: str = "", **values) -> Difference:
    interval = Interval(0.1, 0.05, 0.15, 0.01)
    given = {"metric": "accuracy", "first": 0.8, "second": 0.9, "interval": interval, "basis": Basis.EXAMPLES, **values}
    return Difference(variant=1, evaluation="heldout", part=part, examples=100, **given)


def data_of(**values) -> dict:
    found = Comparison(variants=[variant("runs/a"), variant("runs/b", 3)], **values)
    data = comparison_data(found, {"runs/a": "a", "runs/b": "b"}, Budget(10**6))
    json_text.dumps(data)
    return data


def test_variants_have_the_names_of_the_report():
    assert data_of()["variants"] == ["a", "b (3 seeds)"]


def test_difference_keeps_its_interval_and_its_verdict():
    [result] = data_of(results=[difference(higher_is_better=True)])["results"]
    assert (result["difference"], result["interval"], result["p"]) == (0.1, [0.05, 0.15], 0.01)
    assert (result["verdict"], result["over"]) == ("better", "examples")


def test_slice_has_the_corrected_p_and_no_interval_where_it_is_unknown():
    unknown = Interval(0.1, math.nan, math.nan, 0.001)
    [result] = data_of(results=[difference("night", interval=unknown, adjusted_p=0.2, groups=12)])["results"]
    assert (result["interval"], result["p"], result["verdict"], result["over"]) == (None, 0.2, "", "12 groups")


def test_least_sure_slices_of_very_many_are_counted():
    results = [difference(), *(difference(f"slice/{at}", adjusted_p=0.5) for at in range(MOST_SLICES + 7))]
    data = data_of(results=results)
    assert (len(data["results"]), data["more"]) == (1 + MOST_SLICES, 7)


def test_differences_are_texts_and_notes_are_kept():
    data = data_of(
        settings={"task.width": (128, None)}, code={"commit": ("a", "b")}, notes=["one"], results=[difference()]
    )
    assert data["differences"] == [["settings", ["task.width", ["128", "–"]]], ["code", ["commit", ["a", "b"]]]]
    assert data["notes"] == ["one"]
    assert data["meanings"][0].startswith("Over examples (paired bootstrap): how sure")


def test_changed_example_has_the_figures_of_both(tmp_path):
    write_figure(tmp_path / "a.png")
    change = Change(
        variant=1, evaluation="heldout", metric="loss", index=7, tags={"scene": "x"}, first=1.0, second=3.0,
        figures=(str(tmp_path / "a.png"), ""),
    )  # fmt: skip
    [found] = data_of(changes=[change])["changes"]
    assert found["figures"][0].startswith("data:image/png") and found["figures"][1] is None
    assert (found["example"], found["tags"], found["change"]) == (7, {"scene": "x"}, 2.0)


def test_figures_that_do_not_fit_have_a_note(tmp_path):
    write_figure(tmp_path / "a.png")
    change = Change(
        variant=1, evaluation="heldout", metric="loss", index=7, tags={}, first=1.0, second=3.0,
        figures=(str(tmp_path / "a.png"), ""),
    )  # fmt: skip
    data = comparison_data(Comparison(variants=[variant("a"), variant("b")], changes=[change]), {}, Budget(10))
    assert data["notes"] == ["Figures of examples that are left out, since all are too large together: 1."]


def test_change_to_an_infinite_value_has_no_number():
    """In JavaScript, null counts as 0."""
    change = Change(variant=1, evaluation="heldout", metric="loss", index=7, tags={}, first=1.0, second=math.inf)
    [found] = data_of(changes=[change])["changes"]
    assert (found["first"], found["second"], found["change"]) == (1.0, None, None)
