"""Computations, trip counts and runs read from HLO text, in the notations of GPUs and TPUs."""

import jax
import jax.numpy as jnp
import pytest

from engine.compile.hlo_text import HloText, arrays, shape_bytes, without_layout

LOOP = """HloModule test

%condition (p.1: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(20)
  %p.1 = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[] compare(%counter, %limit), direction=LT
}

%body (p.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %stride = s32[]{:T(128)} constant(STRIDE)
  %p.2 = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %before = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  %x = f32[8]{0} get-tuple-element(%p.2), index=1
  %after = s32[]{:T(128)S(6)} ADD(%before, %stride)
  %moved = s32[]{:T(128)} copy(%after)
  ROOT %t = (s32[]{:T(128)}, f32[8]{0}) tuple(%moved, %x)
}

ENTRY %main (p.3: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.3 = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  ROOT %w = (s32[]{:T(128)}, f32[8]{0}) while(%p.3), condition=%condition, body=%body
}
"""


def parsed(stride=1, add="add"):
    program = HloText.parse(LOOP.replace("STRIDE", str(stride)).replace("ADD", add))
    return program, program.computations["main"][-1]


@pytest.mark.parametrize(("stride", "trips"), [(1, 20), (2, 10), (3, 7)])
def test_trip_count_without_annotation_is_the_limit_divided_by_the_stride(stride, trips):
    program, loop = parsed(stride)
    assert program.trip_count(loop) == trips
    assert program.runs["body"] == trips


def test_loop_whose_counter_is_no_sum_has_no_trip_count_and_runs_once():
    program, loop = parsed(2, add="multiply")
    assert program.trip_count(loop) is None
    assert program.runs["body"] == 1


def test_condition_is_no_computation_that_runs():
    program, loop = parsed()
    assert loop.callees() == ["body"]
    assert {name for _, name, _ in program.executed()} == {"main", "body"}


def test_arrays_and_bytes_of_a_shape_with_layouts_and_comments():
    shape = "(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[], s4[4], f8e4m3fn[<=2])"
    assert arrays(shape) == [("bf16", (2, 3)), ("f32", ()), ("s4", (4,)), ("f8e4m3fn", (2,))]
    assert shape_bytes(shape) == 12 + 4 + 2 + 2
    assert without_layout("f32[2]{0:T(128)}") == "f32[2]"


def test_nested_loops_of_a_compiled_program_multiply():
    def inner(x, _):
        return jnp.sin(x @ x), None

    def outer(x, _):
        return jax.lax.scan(inner, x, length=3)[0], None

    compiled = jax.jit(lambda x: jax.lax.scan(outer, x, length=5)[0]).lower(jnp.ones((4, 4))).compile()
    program = HloText.parse(str(compiled.as_text()))
    assert sum(times for times, _, i in program.executed() if i.opcode in ("sine", "sin")) == 15
