"""Names of two programs that are matched by their words, by surer matches, and by nothing at all."""

import itertools

import pytest

from engine.hub.similarity import Matcher

HERE = [tuple(name.split("/")) for name in ("a/0/conv/kernel", "a/0/norm/scale", "a/0/norm/bias", "a/1/conv/kernel")]


def matched(there, classes):
    """Returns the names by those here, and those of them that are ambiguous."""
    found, near = Matcher(HERE, [tuple(name.split(".")) for name in there], classes).match()
    return [there[found[i]] for i in sorted(found)], [i for i, others in near.items() if others]


@pytest.mark.parametrize("there", list(itertools.permutations(("b.0.norm.weight", "b.0.norm.bias"))))
def test_synonyms_decide(there):
    assert matched(there, [([1, 2], [0, 1])]) == (["b.0.norm.weight", "b.0.norm.bias"], [])


def test_sure_matches_translate_words():
    """One kernel has a shape of its own, so its number and the word for a convolution are known."""
    there = ["x.7.uu.weight", "x.3.uu.weight", "x.3.vv.bias", "x.3.vv.weight"]
    classes = [([0], [1]), ([1, 2], [2, 3]), ([3], [0])]
    assert matched(there, classes) == (["x.3.uu.weight", "x.3.vv.weight", "x.3.vv.bias", "x.7.uu.weight"], [])


def test_without_evidence_the_order_decides_and_all_are_ambiguous():
    assert matched(["p", "q"], [([0, 3], [0, 1])]) == (["p", "q"], [0, 3])
