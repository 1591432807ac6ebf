"""Proposes which array of another program's weights is which array of a model: by shapes, names and order.

It is for weights whose names no table knows. Arrays that fit equally well are listed, and can be decided by outputs.
"""

import dataclasses
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
from flax import nnx

from engine.hub.matching import COUNTERS, stacked_of, variables_of
from engine.hub.names import LAYER, usual_order
from engine.hub.pair import TOLERANCE
from engine.hub.similarity import Matcher
from engine.hub.weights import Stored

PARTS = {2: ("0", "1"), 3: ("query", "key", "value")}
"""Number of parts of an array there -> what they usually are."""
LETTERS = "abcdefgh"
TRIES = 400  # comparisons of outputs


@dataclasses.dataclass(frozen=True)
class Item:
    """An array here, or there: one array, those of all layers (`count`), or a part of one."""

    name: str
    words: tuple[str, ...]
    count: int
    shape: tuple[int, ...]

    @property
    def kind(self) -> tuple[int, tuple[int, ...]]:
        """Equal for arrays that may be the same one in another order of dimensions."""
        return self.count, tuple(sorted(self.shape))


@dataclasses.dataclass
class Match:
    """The entry of `init.paths` that is proposed for an array here, and others that fit nearly as well."""

    path: str
    entry: str | None
    shapes: str = ""
    others: Sequence[str] = ()

    @property
    def comment(self) -> str:
        """What a reader of the file of paths must know."""
        return f"{self.shapes}; AMBIGUOUS, or {', '.join(self.others)}" if self.others else self.shapes


def propose(module: nnx.Module, stored: Mapping[str, Stored]) -> list[Match]:
    """Returns a match for each array of a module, in the order of their definition."""
    here = _here(module)
    there = list(_there(here, stored))
    kinds: dict[tuple, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for side, items in enumerate((here, there)):
        for i, item in enumerate(items):
            kinds[item.kind][side].append(i)
    classes = [one for one in kinds.values() if all(one)]
    found, near = Matcher([x.words for x in here], [x.words for x in there], classes).match()
    matched = [(here[i], there[j]) for i, j in found.items()]
    same_order = sum(_fits(a, b, range(len(a.shape))) - _fits(a, b, _usual(a)) for a, b in matched) > 0
    matches = []
    for i, item in enumerate(here):
        if i not in found:
            matches.append(Match(item.name, None, f"{list(item.shape)}, random: nothing of this shape is left"))
            continue
        entry, *orders = entries(item, there[found[i]], same_order)
        others = [other for j in near[i] for other in entries(item, there[j], same_order)]
        shapes = f"{list(item.shape)} from {list(there[found[i]].shape)}"
        matches.append(Match(item.name, entry, shapes, [*orders, *others]))
    return matches


def entries(here: Item, there: Item, same_order: bool) -> list[str]:
    """Returns the entries for an array there in the orders of dimensions that fit, the likely one first.

    Args:
        here: the array of the model, and `there` the other one, with the same sizes in some order.
        same_order: whether matrices there are `[in, out]`, as those whose sizes differ show.
    """
    rank, usual = len(here.shape), _usual(here)
    same = tuple(range(rank))
    likely = [same, usual] if same_order else [usual, same]
    orders = [order for order in dict.fromkeys(likely) if _fits(here, there, order)]
    if not orders:
        orders = [order for order in itertools.permutations(same) if _fits(here, there, order)][:1]
    text = [f": {LETTERS[:rank]}->{''.join(LETTERS[d] for d in order)}" for order in orders]
    return [there.name + ("" if order == usual else end) for order, end in zip(orders, text, strict=True)]


def decide(
    matches: Sequence[Match],
    difference: Callable[[Mapping[str, jax.Array]], float],
    values: dict[str, jax.Array],
    read: Callable[[str, str], jax.Array],
) -> float:
    """Decides matches with several entries by the output of the model; returns the difference that is left.

    Args:
        matches: are changed.
        difference: of the output, for variables by path.
        values: variables by path; are changed.
        read: returns the value of a path for an entry.
    """
    best, tries = difference(values), 0
    while best > TOLERANCE and tries < TRIES:
        found: list[tuple[float, list[tuple[Match, str]]]] = []
        for change in _changes(matches):
            new = {match.path: read(match.path, entry) for match, entry in change}
            found.append((difference(values | new), change))
            if found[-1][0] <= TOLERANCE:
                break
        tries += len(found)
        least, change = min(found, key=lambda one: one[0], default=(math.inf, []))
        if least >= best:
            break
        best = least
        for match, entry in change:
            values[match.path] = read(match.path, entry)
            match.others = [match.entry or "", *(one for one in match.others if one != entry)]
            match.entry = entry
    if best <= TOLERANCE:
        for match in matches:
            match.others = ()
    return best


def _changes(matches: Sequence[Match]) -> Iterator[list[tuple[Match, str]]]:
    """Yields single changes: another entry for an array, which exchanges it with the array that has this entry."""
    holders = {_name(match.entry): match for match in matches if match.entry}
    for match in matches:
        for other in match.others if match.entry else ():
            holder = holders.get(_name(other))
            if holder is None or holder is match:
                yield [(match, other)]
            else:
                own = _name(match.entry or "")
                yield from ([(match, other), (holder, back)] for back in holder.others if _name(back) == own)


def _name(entry: str) -> str:
    return entry.partition(":")[0]


def _usual(item: Item) -> tuple[int, ...]:
    return usual_order(item.words[-1], len(item.shape))


def _fits(here: Item, there: Item, order: Sequence[int]) -> bool:
    return tuple(there.shape[d] for d in order) == here.shape


def _here(module: nnx.Module) -> list[Item]:
    """Returns the arrays of a module in the order in which it defines them."""
    stacked, items = stacked_of(module), {}
    for path, variable in variables_of(module).items():
        shape, layers = variable.get_value().shape, stacked.get(path, 0)
        words = tuple(path.split("/"))
        items[path] = Item(path, words, math.prod(shape[:layers]) if layers else 0, shape[layers:])
    order = {path: i for i, path in enumerate(_defined(module, ()))}
    return sorted(items.values(), key=lambda item: order.get(item.name, len(order)))


def _defined(value: object, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(value, nnx.Variable):
        yield "/".join(path)
    elif isinstance(value, nnx.Module):
        for name, one in vars(value).items():
            yield from _defined(one, (*path, name))


def _there(here: Sequence[Item], stored: Mapping[str, Stored]) -> Iterator[Item]:
    """Yields the arrays there in the order of their names, those of all layers as one, and parts of arrays."""
    kinds = Counter(item.kind for item in here)
    depths = {item.count for item in here if item.count}
    names = sorted((name for name in stored if not name.endswith(COUNTERS)), key=_natural)
    layers: dict[str, dict[int, str]] = defaultdict(dict)
    for name in names:
        for found in re.finditer(r"(?<![^.])\d+(?![^.])", name) if depths else ():
            layers[f"{name[: found.start()]}{LAYER}{name[found.end() :]}"][int(found[0])] = name
    stacks, used = [], set()
    for template, found in layers.items():
        shapes = {stored[name].shape for name in found.values()}
        if len(found) in depths and sorted(found) == list(range(len(found))) and len(shapes) == 1:
            stacks.append(Item(template, _words(template), len(found), shapes.pop()))
            used.update(found.values())
    for item in [*stacks, *(Item(n, _words(n), 0, stored[n].shape) for n in names if n not in used)]:
        if item.kind in kinds:
            yield item
        else:
            yield from _parts(item, here)


def _parts(item: Item, here: Sequence[Item]) -> Iterator[Item]:
    """Yields the parts of an array there if a module of the model has so many submodules with this shape."""
    siblings = Counter((x.kind, x.words[:-2], x.words[-1]) for x in here)
    for count, roles in PARTS.items():
        if not item.shape or item.shape[0] % count:
            continue
        part = dataclasses.replace(item, shape=(item.shape[0] // count, *item.shape[1:]))
        if any(kind == part.kind and number >= count for (kind, *_), number in siblings.items()):
            for i, role in enumerate(roles):
                words = (*item.words[:-1], role, item.words[-1])
                yield dataclasses.replace(part, name=f"{item.name}[{i} of {count}]", words=words)
            return


def _words(name: str) -> tuple[str, ...]:
    return tuple(name.split("."))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Returns a key that sorts numbers by value."""
    return [(0, int(x), "") if x.isdigit() else (1, 0, x) for x in re.split(r"(\d+)", name) if x]
