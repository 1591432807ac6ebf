"""What a comparison of runs has found: plain values, which tables, gates and reports read.

Runs whose configs differ in nothing but the seed are one variant. The first variant is the base, and each other one is
compared with it. `to_json` returns everything as JSON.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine.experiments.record import RunRecord
from engine.experiments.statistics import Interval

WHOLE = ""
"""Name of the part that has all examples."""
SURE = 0.05
"""A difference whose p-value is below it is sure: its 95 % interval does not hold 0."""


class Basis(enum.StrEnum):
    """What an interval is over: what would have to be repeated for it to hold the true value 95 times of 100."""

    NONE = "none"
    """There is no interval."""
    EXAMPLES = "examples"
    """Bootstrap over the examples, or over groups of them, that both variants were evaluated on, in pairs."""
    SEEDS = "seeds"
    """t interval over the differences of pairs of runs with the same seed."""
    SEPARATE_SEEDS = "separate seeds"
    """t interval of Welch over the runs of each variant, which have other seeds."""

    @property
    def meaning(self) -> str:
        """A sentence for a reader who has to decide by such an interval."""
        return _MEANINGS[self]


_MEANINGS = {
    Basis.NONE: "There is no interval.",
    Basis.EXAMPLES: (
        "Over examples (paired bootstrap): how sure the difference of these trained models is on other examples of "
        "this kind. It says nothing about seeds: another seed of the same setting may differ by more."
    ),
    Basis.SEEDS: (
        "Over seeds (paired t interval): how sure the difference of the settings is with other seeds, on these "
        "examples."
    ),
    Basis.SEPARATE_SEEDS: (
        "Over separate seeds (Welch's t interval): how sure the difference of the settings is with other seeds, on "
        "these examples."
    ),
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """Runs that differ in nothing but the seed; usually one.

    Attributes:
        name: the path of its first run.
        runs: their records, in the order in which they were given.
        seeds: `train.seed` of each of them; None if its config has none.
    """

    name: str
    runs: Sequence[RunRecord]
    seeds: Sequence[int | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One number of an evaluation, in the base and in another variant.

    Attributes:
        variant: index in `Comparison.variants` of the variant that is compared with the base, from 1.
        evaluation: name of the evaluation.
        part: a slice, or WHOLE.
        metric: name of the number, such as "ap/car".
        examples: number of examples; 0 if it is not known.
        groups: number of groups of examples for the bootstrap: that of the examples without `--group`; 0 over seeds.
        first: the value of the base: the mean over its runs.
        second: that of the other variant.
        first_values: the value of each run of the base, in the order of `Variant.runs`.
        second_values: that of each run of the other variant.
        higher_is_better: None if neither the metric nor its name says it.
        basis: what the interval is over.
        interval: second - first; its limits and its p-value are NaN where examples or seeds are too few.
        resamples: number of resamples of the bootstrap; 0 if the interval is none.
        adjusted_p: the p-value after the correction for the number of slices (Holm); NaN for all examples.
    """

    variant: int
    evaluation: str
    part: str
    metric: str
    first: float
    second: float
    interval: Interval
    examples: int = 0
    groups: int = 0
    first_values: Sequence[float] = ()
    second_values: Sequence[float] = ()
    higher_is_better: bool | None = None
    basis: Basis = Basis.NONE
    resamples: int = 0
    adjusted_p: float = math.nan

    @property
    def name(self) -> str:
        """Full name, as in the results of the run: "heldout/night/loss"."""
        return "/".join(filter(None, (self.evaluation, self.part, self.metric)))

    @property
    def is_sure(self) -> bool:
        """Whether the difference is more than noise: of slices, after the correction for their number."""
        return (self.interval.p if self.part == WHOLE else self.adjusted_p) < SURE

    @property
    def verdict(self) -> str:
        """ "better" or "worse" if the difference is sure and the direction of the metric is known, "differs" if it is
        not known; else ""."""
        if not self.is_sure or not self.interval.estimate:
            return ""
        if self.higher_is_better is None:
            return "differs"
        return "better" if (self.interval.estimate > 0) == self.higher_is_better else "worse"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """One example whose result changed.

    Attributes:
        variant: index in `Comparison.variants` of the variant that is compared with the base.
        evaluation: name of the evaluation.
        metric: name of the number.
        index: index of the example in the dataset of the first run of the base.
        tags: its tags, such as its key and its scene.
        first: its value in the base: the mean over its runs.
        second: that in the other variant.
        figures: the pictures of the example that the first run of each variant has drawn; "" where there is none.
    """

    variant: int
    evaluation: str
    metric: str
    index: int
    tags: Mapping[str, Any]
    first: float
    second: float
    figures: tuple[str, str] = ("", "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Variants, what differs between them, and how sure the differences of their results are.

    Attributes:
        variants: the base, and those that are compared with it.
        settings: setting -> its value in each variant, where they differ.
        code: package, "commit" or "uncommitted changes" -> its value in each variant, where they differ.
        data: dataset -> the fingerprint of its content in each variant, where they differ.
        environment: "devices", "mesh" and such -> its value in each variant, where they differ.
        group: tag whose values were resampled; "" if single examples were.
        results: every number that the base and another variant have: for each variant all examples first, then slices,
            ordered by how sure their difference is.
        changes: for each variant and evaluation, the examples that changed most, these first.
        notes: sentences about what could not be compared, or only in part.
    """

    variants: Sequence[Variant]
    settings: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    code: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    group: str = ""
    results: Sequence[Difference] = ()
    changes: Sequence[Change] = ()
    notes: Sequence[str] = ()

    @property
    def runs(self) -> Sequence[RunRecord]:
        """The records of all runs."""
        return [run for variant in self.variants for run in variant.runs]

    @property
    def meanings(self) -> Sequence[str]:
        """Sentences that say what the intervals of the results are over."""
        bases = dict.fromkeys(result.basis for result in self.results if result.basis != Basis.NONE)
        grouped = f" Groups are the values of {self.group}." if self.group else ""
        return [f"{basis.meaning}{grouped if basis == Basis.EXAMPLES else ''}" for basis in bases]


def to_json(found: Comparison) -> dict[str, Any]:
    """Returns a comparison as values of JSON, for `json_text.dumps`; what has no value is NaN there."""
    return {
        "variants": [
            {"name": variant.name, "runs": [run.path for run in variant.runs], "seeds": list(variant.seeds)}
            for variant in found.variants
        ],
        **{name: getattr(found, name) for name in ("settings", "code", "data", "environment", "group")},
        "results": [
            {
                **vars(result),
                "name": result.name,
                "interval": result.interval._asdict(),
                "basis": str(result.basis),
                "meaning": result.basis.meaning,
                "verdict": result.verdict,
            }
            for result in found.results
        ],
        "changes": [vars(change) for change in found.changes],
        "notes": list(found.notes),
    }
