"""The values of a comparison: verdicts, and their JSON."""

import json
import math

import pytest

from engine.base import json_text
from engine.experiments.comparison import Basis, Change, Comparison, Difference, Variant, to_json
from engine.experiments.record import RunRecord
from engine.experiments.statistics import Interval


def difference(p: float, adjusted: float = math.nan, part: str = "", estimate: float = 0.25, **values) -> Difference:
    interval = Interval(estimate, 0.1, 0.4, p)
    return Difference(
        variant=1, evaluation="val", part=part, metric="error", first=1.0, second=1.25, interval=interval,
        adjusted_p=adjusted, **values,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (difference(0.01, higher_is_better=False), "worse"),
        (difference(0.01, higher_is_better=True), "better"),
        (difference(0.01, estimate=-0.25, higher_is_better=False), "better"),
        (difference(0.01), "differs"),
        (difference(0.06, higher_is_better=False), ""),
        (difference(math.nan, higher_is_better=False), ""),
        (difference(0.01, 0.2, "night", higher_is_better=False), ""),
        (difference(0.01, 0.04, "night", higher_is_better=False), "worse"),
    ],
)
def test_verdict_needs_a_sure_difference_and_for_slices_the_corrected_p(found, verdict):
    assert found.verdict == verdict


def test_json_has_every_field():
    variants = [Variant(name, (RunRecord(path=name, state="done"),), (0,)) for name in "ab"]
    change = Change(variant=1, evaluation="val", metric="error", index=3, tags={"scene": "x"}, first=1.0, second=2.0)
    slices = [difference(math.nan, part="night", basis=Basis.SEEDS, first_values=(1.0, 1.5))]
    found = Comparison(
        variants=variants, settings={"x": (1, None)}, results=slices, changes=[change], notes=["a note."]
    )
    values = json.loads(json_text.dumps(to_json(found)))
    assert values["variants"][1] == {"name": "b", "runs": ["b"], "seeds": [0]}
    assert values["settings"] == {"x": [1, None]} and values["notes"] == ["a note."]
    [result] = values["results"]
    assert result["name"] == "val/night/error" and result["basis"] == "seeds"
    assert result["interval"] == {"estimate": 0.25, "low": 0.1, "high": 0.4, "p": "NaN"}
    assert "with other seeds" in result["meaning"]
    assert values["changes"][0]["tags"] == {"scene": "x"}
    assert set(vars(found)) == set(values) and set(vars(slices[0])) <= set(result)
