"""How similar names of two programs are: by their words, by their order, and by what surer matches have in common.

A word of one program that always goes with a word of the other one is its translation, whatever both are called.
"""

import difflib
import re
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

SYNONYMS = {
    **dict.fromkeys(("kernel", "scale", "embedding", "table", "gamma", "w", "g"), "weight"),
    **dict.fromkeys(("beta", "b"), "bias"),
    **dict.fromkeys(("running_mean", "moving_mean"), "mean"),
    **dict.fromkeys(("running_var", "moving_variance", "variance"), "var"),
    **dict.fromkeys(("bn", "ln", "layernorm", "batchnorm", "groupnorm", "norm"), "norm"),
    **dict.fromkeys(("q", "q_proj", "wq"), "query"),
    **dict.fromkeys(("k", "k_proj", "wk"), "key"),
    **dict.fromkeys(("v", "v_proj", "wv"), "value"),
    **dict.fromkeys(("o", "o_proj", "wo", "proj", "out_proj"), "out"),
    **dict.fromkeys(("fc1", "w1"), "up"),
    **dict.fromkeys(("fc2", "w2"), "down"),
    **dict.fromkeys(("fc", "classifier"), "head"),
}
"""Word -> the word for the same thing."""
ROUNDS = 12
NEAR = 0.6  # least similarity of two spellings of a word
SPELLING, LEARNED, ORDER = 0.4, 0.6, 0.01
CLOSE = 0.02  # between two assignments that are equally likely
SURE = 0.1  # difference to the next assignment of a match that counts in full
DOUBT = 0.3  # sure matches that a word would need in addition for a certain translation
PARENT = "^"
"""Begins the tokens of the modules that an array belongs to."""


def tokens_of(words: Sequence[str]) -> list[str]:
    """Returns the tokens of a name: its words, numbers after the word before them, and the modules around it."""
    shown = [re.sub(r"\d+", "#", word) for word in words]
    found = [f"{shown[i - 1] if i else ''}>{word}" if word.isdigit() else word for i, word in enumerate(words)]
    return [*found, *(PARENT + "/".join(words[:i]) for i in (len(words) - 1, len(words) - 2) if i > 0)]


class Names:
    """Names of one program as tokens."""

    def __init__(self, names: Sequence[Sequence[str]]):
        lists = [tokens_of(words) for words in names]
        self.words = list(dict.fromkeys(token for tokens in lists for token in tokens))
        numbers = {word: i for i, word in enumerate(self.words)}
        longest = max(map(len, lists), default=0)
        self.ids = np.array([[numbers[t] for t in tokens] + [-1] * (longest - len(tokens)) for tokens in lists], int)


class Matcher:
    """Assigns names here to names there within classes, whose members may be assigned to each other.

    Args:
        here: words of each name here, in the order of the model.
        there: words of each name there, in the order of their names.
        classes: positions here and positions there.
    """

    def __init__(
        self,
        here: Sequence[Sequence[str]],
        there: Sequence[Sequence[str]],
        classes: Sequence[tuple[Sequence[int], Sequence[int]]],
    ):
        self._here, self._there, self._classes = Names(here), Names(there), classes
        spelling = [[_spelling(a, b) for b in self._there.words] for a in self._here.words]
        self._spelling = np.array(spelling).reshape(len(self._here.words), len(self._there.words))
        self._named = [SPELLING * self._common(self._spelling, i, j) for i, j in classes]

    def match(self) -> tuple[dict[int, int], dict[int, list[int]]]:
        """Returns here -> there, and here -> those there that are nearly as likely."""
        evidence = self._named
        for _ in range(ROUNDS):
            learned = self._translations(evidence)
            evidence = [
                named + LEARNED * self._common(learned, i, j)
                for named, (i, j) in zip(self._named, self._classes, strict=True)
            ]
        found: dict[int, int] = {}
        near: dict[int, list[int]] = {}
        for one, (i, j) in zip(evidence, self._classes, strict=True):
            for row, column, gaps in _assigned(one):
                found[i[row]] = j[column]
                near[i[row]] = [j[other] for other in np.argsort(gaps) if gaps[other] < CLOSE]
        return found, near

    def _common(self, table: np.ndarray, i: Sequence[int], j: Sequence[int]) -> np.ndarray:
        """Returns the mean over the tokens of both names of the best counterpart in the other one, `[here, there]`."""
        padded = np.pad(table, ((0, 1), (0, 1)))  # token -1 is the last one
        a, b = self._here.ids[list(i)], self._there.ids[list(j)]
        both = padded[a[:, None, :, None], b[None, :, None, :]]  # [here, there, tokens, tokens]
        counts = (a >= 0).sum(1)[:, None] + (b >= 0).sum(1)[None]
        return (both.max(3).sum(2) + both.max(2).sum(2)) / counts

    def _translations(self, evidence: Sequence[np.ndarray]) -> np.ndarray:
        """Returns how much two words go together in the assignment, 0 to 1. Only matches that are sure count."""
        shape = len(self._here.words), len(self._there.words)
        together, here, there = np.zeros(shape), np.zeros(shape[0]), np.zeros(shape[1])
        for score, (i, j) in zip(evidence, self._classes, strict=True):
            for row, column, gaps in _assigned(score):
                gap = gaps.min(initial=SURE)
                weight = min(gap / SURE, 1.0) if gap >= CLOSE else 0.0
                a, b = (x.ids[k][x.ids[k] >= 0] for x, k in ((self._here, i[row]), (self._there, j[column])))
                together[np.ix_(a, b)] += weight
                here[a] += weight
                there[b] += weight
        return together / np.sqrt((here[:, None] + DOUBT) * (there[None] + DOUBT))


def _assigned(score: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """Returns the best assignment: row, column, and what each other column would cost, by exchange with its row.

    The order of names only breaks ties.
    """
    places = [np.arange(size) / max(size - 1, 1) for size in score.shape]
    order = 1 - np.abs(places[0][:, None] - places[1][None])
    rows, columns = linear_sum_assignment(score + ORDER * order, maximize=True)
    own = dict(zip(columns.tolist(), rows.tolist(), strict=True))
    found = []
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        gaps = np.full(score.shape[1], np.inf)
        for other in range(score.shape[1]):
            if other != column:
                gaps[other] = score[row, column] - score[row, other]
                if (holder := own.get(other)) is not None:
                    gaps[other] += score[holder, other] - score[holder, column]
        found.append((row, column, gaps))
    return found


def _spelling(a: str, b: str) -> float:
    """Returns how similar two words are, 0 to 1."""
    if a.startswith(PARENT) or b.startswith(PARENT):
        return 0.0
    number = a.rpartition(">")[2] if ">" in a else "", b.rpartition(">")[2] if ">" in b else ""
    if any(number):
        return 0.5 if number[0] == number[1] else 0.0
    a, b = (SYNONYMS.get(x.lower(), x.lower()) for x in (a, b))
    ratio = 1.0 if a == b else difflib.SequenceMatcher(None, a, b).ratio()
    return ratio if ratio >= NEAR else 0.0
