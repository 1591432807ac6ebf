"""Proves from a traced program that each row of its results depends only on the same row of its inputs.

Each value of the program is `Same` for all rows, `ByRow` along one dimension, or `Mixed`. An operation without a
rule that keeps the rows apart gives `Mixed`. So a proof is right, but a value that is `Mixed` need not mix rows.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from engine.base.user_errors import traced_place
from engine.training.jaxprs import inner_jaxprs
from engine.training.row_counts import Differences, check_count
from engine.training.row_rules import (
    FOR_SAME,
    RULES,
    ByRow,
    Each,
    Mixed,
    NoProof,
    Same,
    State,
    anything,
    combined,
    is_array,
    shape_of,
)

KEEPS_ROWS = "convoy_keeps_rows"
"""Name of the function of `layers/reference.py` that keeps the rows `[batch, ...]` of its arguments apart."""


@dataclass(frozen=True)
class _Batch:
    """What the walk over a program knows of its batch."""

    rows: int
    differences: Differences


def trace_rows(jaxpr: Jaxpr, inputs: Sequence[State], rows: int, differences: Differences | None = None) -> list[State]:
    """Returns the state of each result of a traced program.

    Args:
        jaxpr: the program.
        inputs: the state of each of its arguments.
        rows: rows of the batch.
        differences: how it differs from the program of another number of rows; None if that number does not change.
    """
    return _trace(jaxpr, inputs, _Batch(rows, differences or {}))


def _trace(jaxpr: Jaxpr, inputs: Sequence[State], batch: _Batch) -> list[State]:
    states: dict[object, State] = dict(zip(jaxpr.invars, inputs, strict=True))
    for constant in jaxpr.constvars:
        states[constant] = anything(shape_of(constant)) if is_array(constant) else Mixed("a mutable reference")
        if id(constant) in batch.differences:
            states[constant] = Mixed("a constant that depends on the number of rows")

    def state(atom: object) -> State:
        return anything(shape_of(atom)) if isinstance(atom, Literal) else states[atom]

    for equation in jaxpr.eqns:
        operands = [state(atom) for atom in equation.invars]
        states |= zip(equation.outvars, _results(equation, operands, batch), strict=True)
    return [state(atom) for atom in jaxpr.outvars]


def _results(equation: JaxprEqn, operands: Sequence[State], batch: _Batch) -> list[State]:
    """Returns the state of each result of an equation."""
    name, inner = equation.primitive.name, list(inner_jaxprs(equation))
    try:
        difference = batch.differences.get(id(equation))
        if difference is not None and difference.constants:
            raise NoProof
        if any(isinstance(operand, Each) for operand in operands):
            if difference is not None:
                raise NoProof
            return _of_each(equation, operands)
        if name in _CONTROL_FLOW:
            return [_located(state, equation) for state in _CONTROL_FLOW[name](equation, operands, batch)]
        if equation.params.get("name") == KEEPS_ROWS:
            return [_kept(equation, operands)] * len(equation.outvars)
        if _is_call(equation, inner):
            return [_located(state, equation) for state in _trace(inner[0], operands, batch)]
        if difference is not None:
            check_count(difference, equation, operands, batch.rows)
        if not all(map(is_array, equation.outvars)):
            raise NoProof  # what is written to a reference is not followed
        if all(isinstance(operand, Same) for operand in operands):
            return _same(equation, operands, batch)
        if any(isinstance(operand, Mixed) for operand in operands) or name not in RULES:
            raise NoProof
        return [RULES[name](equation, operands, batch.rows)] * len(equation.outvars)
    except NoProof:
        earlier = [operand for operand in operands if isinstance(operand, Mixed)]
        return [earlier[0] if earlier else Mixed(_place(equation))] * len(equation.outvars)


def _is_call(equation: JaxprEqn, inner: Sequence[Jaxpr]) -> bool:
    """Returns whether an equation calls one function with all of its arguments, and has all of its results."""
    if len(inner) != 1 or equation.primitive.name in ("pallas_call", "shard_map"):
        return False
    # The function of a reduction takes two entries of its arrays.
    return [*map(shape_of, (*inner[0].invars, *inner[0].outvars))] == [
        *map(shape_of, (*equation.invars, *equation.outvars))
    ]


def _of_each(equation: JaxprEqn, operands: Sequence[State]) -> list[State]:
    if not all(isinstance(operand, Same | Each) for operand in operands):
        raise NoProof
    return [Each()] * len(equation.outvars)


def _kept(equation: JaxprEqn, operands: Sequence[State]) -> State:
    found = {operand for operand in operands if not isinstance(operand, Same)}
    if not found:
        return anything(shape_of(equation.outvars[0]))
    rows = found.pop()
    if found or not isinstance(rows, ByRow) or rows.axis:
        raise NoProof
    sizes = {shape_of(x)[:1] for x, state in zip(equation.invars, operands, strict=True) if state == rows}
    if sizes != {shape_of(x)[:1] for x in equation.outvars}:
        raise NoProof  # under jax.vmap, another dimension may come first
    return rows


def _located(state: State, equation: JaxprEqn) -> State:
    """Adds the line of a call, such as that of jnp.roll, to an operation of a library inside that has no line."""
    if not isinstance(state, Mixed) or " (" in state.place:
        return state
    return Mixed(state.place + _place(equation).removeprefix(equation.primitive.name))


def _place(equation: JaxprEqn) -> str:
    trace = equation.source_info.traceback
    place = traced_place(trace.frames) if trace is not None else ""
    return f"{equation.primitive.name} ({place})" if place else equation.primitive.name


def _same(equation: JaxprEqn, operands: Sequence[State], batch: _Batch) -> list[State]:
    """Returns the states of results that do not depend on the batch."""
    name = equation.primitive.name
    if name == "iota":
        return [Same(frozenset({equation.params["dimension"]}))]
    if name in FOR_SAME:
        return [RULES[name](equation, operands, batch.rows)] * len(equation.outvars)
    varies = [set(anything(shape_of(x)).varies) for x in equation.outvars]
    for axis in _constant_axes(equation, operands) if name in RULES else ():
        for found in varies:
            found.discard(axis)
    return [Same(frozenset(found)) for found in varies]


def _constant_axes(equation: JaxprEqn, operands: Sequence[State]) -> Iterator[int]:
    """Yields dimensions along which the results do not vary: equal entries of an operand give equal entries there.

    The initial state of a recurrent layer is equal for all rows, for example.
    """
    for place, operand in enumerate(operands):
        for axis, size in enumerate(shape_of(equation.invars[place])):
            if size > 1 and isinstance(operand, Same) and axis not in operand.varies:
                equal_rows = [*operands[:place], ByRow(axis), *operands[place + 1 :]]
                with contextlib.suppress(NoProof):
                    found = RULES[equation.primitive.name](equation, equal_rows, size)
                    if isinstance(found, ByRow):
                        yield found.axis


def _join(a: State, b: State, equation: JaxprEqn) -> State:
    """Returns the state of a value that is one of two."""
    try:
        return combined([a, b])
    except NoProof:
        mixed = [state for state in (a, b) if isinstance(state, Mixed)]
        return mixed[0] if mixed else Mixed(_place(equation))


def _fixed_point(
    body: Callable[[Sequence[State]], Sequence[State]], carry: Sequence[State], equation: JaxprEqn
) -> list[State]:
    """Returns the states of the values that a loop carries, whatever the number of its iterations."""
    carry = list(carry)
    while True:
        after = [_join(old, new, equation) for old, new in zip(carry, body(carry), strict=True)]
        if after == carry:
            return carry
        carry = after


def _scan(equation: JaxprEqn, operands: Sequence[State], batch: _Batch) -> list[State]:
    inner = equation.params["jaxpr"].jaxpr
    # Arrays that a scan slices or stacks have one dimension less in its body than outside.
    carried = _equal_ranks(inner.outvars, equation.outvars)
    constants = _equal_ranks(inner.invars, equation.invars) - carried
    fixed, rest = list(operands[:constants]), operands[constants:]
    if not carried and any(isinstance(state, ByRow) and state.axis == 0 for state in rest):
        return _over_rows(inner, fixed, rest, batch, equation)
    difference = batch.differences.get(id(equation))
    if difference is not None and difference.length:
        raise NoProof
    sliced = [_slice_of(state, equation) for state in rest[carried:]]

    def body(carry: Sequence[State]) -> list[State]:
        return _trace(inner, [*fixed, *carry, *sliced], batch)

    carry = _fixed_point(lambda carry: body(carry)[:carried], rest[:carried], equation)
    return [*carry, *map(_stack_of, body(carry)[carried:])]


def _over_rows(
    inner: Jaxpr, fixed: Sequence[State], sliced: Sequence[State], batch: _Batch, equation: JaxprEqn
) -> list[State]:
    """Returns the states of the results of a loop that takes the rows one by one, such as jax.lax.map."""
    if equation.params["length"] != batch.rows:
        raise NoProof
    if not all(state == ByRow(0) or (isinstance(state, Same) and 0 not in state.varies) for state in sliced):
        raise NoProof
    states = [Each() if isinstance(state, ByRow) else _slice_of(state, equation) for state in sliced]
    results = _trace(inner, [*fixed, *states], batch)
    return [ByRow(0) if isinstance(state, Each) else _stack_of(state) for state in results]


def _linear_solve(equation: JaxprEqn, operands: Sequence[State], batch: _Batch) -> list[State]:
    lengths = equation.params["const_lengths"]
    start, end = lengths.matvec + lengths.vecmat, sum(lengths)
    constants = operands[start : start + lengths.solve]
    return _trace(equation.params["jaxprs"].solve.jaxpr, [*constants, *operands[end:]], batch)


def _equal_ranks(a: Sequence[object], b: Sequence[object]) -> int:
    return sum(len(shape_of(x)) == len(shape_of(y)) for x, y in zip(a, b, strict=True))


def _slice_of(state: State, equation: JaxprEqn) -> State:
    """Returns the state of the slices of an array along its first dimension."""
    if isinstance(state, Same):
        return Same(frozenset(axis - 1 for axis in state.varies if axis))
    if isinstance(state, ByRow):
        return ByRow(state.axis - 1, state.inner) if state.axis else Mixed(_place(equation))
    return state


def _stack_of(state: State) -> State:
    if isinstance(state, Same):
        return Same(frozenset({0, *(axis + 1 for axis in state.varies)}))
    return ByRow(state.axis + 1, state.inner) if isinstance(state, ByRow) else state


def _while(equation: JaxprEqn, operands: Sequence[State], batch: _Batch) -> list[State]:
    params = equation.params
    tests, bodies = params["cond_nconsts"], params["body_nconsts"]
    of_test, of_body, carry = operands[:tests], operands[tests : tests + bodies], operands[tests + bodies :]

    def body(carry: Sequence[State]) -> list[State]:
        # Under jax.vmap, the test is an array: some rows end before others.
        [test] = _trace(params["cond_jaxpr"].jaxpr, [*of_test, *carry], batch)
        after = _trace(params["body_jaxpr"].jaxpr, [*of_body, *carry], batch)
        return [_join(test, state, equation) for state in after]

    return _fixed_point(body, carry, equation)


def _cond(equation: JaxprEqn, operands: Sequence[State], batch: _Batch) -> list[State]:
    test, *arguments = operands
    if not isinstance(test, Same):
        raise NoProof
    first, *others = (_trace(branch.jaxpr, arguments, batch) for branch in equation.params["branches"])
    for other in others:
        first = [_join(a, b, equation) for a, b in zip(first, other, strict=True)]
    return first


_CONTROL_FLOW: dict[str, Callable[[JaxprEqn, Sequence[State], _Batch], list[State]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "custom_linear_solve": _linear_solve,
    "optimization_barrier": lambda equation, operands, batch: list(operands),
}
