import jax
import jax.numpy as jnp
import pytest

from engine.compile.hlo_text import HloText
from engine.compile.instructions import Executed, executed

SIZE = 64


def found(function, *shapes) -> list[Executed]:
    """Returns the instructions of a function of float32 arrays, compiled for one device."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return list(executed(HloText.parse(jax.jit(function).lower(*arguments).compile().as_text() or "")))


def totals(function, *shapes) -> tuple[int, int]:
    """Returns the FLOPs and the bytes of a function."""
    instructions = found(function, *shapes)
    return sum(i.times * i.flops for i in instructions), sum(i.times * i.bytes for i in instructions)


def test_a_product_counts_its_flops_and_the_three_arrays():
    flops, moved = totals(lambda x, y: x @ y, (SIZE, 2 * SIZE), (2 * SIZE, 4 * SIZE))
    assert flops == 2 * SIZE * 2 * SIZE * 4 * SIZE
    assert moved == 4 * SIZE**2 * (2 + 8 + 4)


def test_a_fusion_moves_what_it_reads_and_writes():
    flops, moved = totals(lambda x: jnp.tanh(x * 2.0) + x, (SIZE, SIZE))
    assert flops == 0 and moved == 2 * 4 * SIZE**2


def test_a_loop_counts_as_often_as_it_runs():
    def run(x, y):
        return jax.lax.fori_loop(0, 7, lambda _, x: jnp.tanh(x @ y), x)

    flops, moved = totals(run, (SIZE, SIZE), (SIZE, SIZE))
    assert flops == 7 * 2 * SIZE**3
    assert 7 * 3 * 4 * SIZE**2 <= moved <= 10 * 5 * 4 * SIZE**2  # XLA may copy the state of the loop


def test_a_slice_and_an_update_in_a_loop_move_a_part_of_the_array():
    def run(x):
        def twice(i, x):
            row = jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
            return jax.lax.dynamic_update_index_in_dim(x, 2.0 * row, i, 0)

        return jax.lax.fori_loop(0, 100, twice, x)

    _, moved = totals(run, (100, SIZE * SIZE))
    assert moved < 100 * 8 * 4 * SIZE**2  # the whole array in each iteration would be 100 times as much


def test_a_convolution_counts_its_products():
    def run(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    flops, _ = totals(run, (2, 16, 16, 8), (3, 3, 8, 32))
    assert flops == pytest.approx(2 * 2 * 16 * 16 * 32 * 9 * 8)


CUBLAS = """\
ENTRY %main (x: bf16[64,128], y: bf16[128,32]) -> bf16[64,32] {
  %x = bf16[64,128]{1,0} parameter(0)
  %y = bf16[128,32]{1,0} parameter(1)
  ROOT %z = (bf16[64,32]{1,0}, s8[1024]{0}) custom-call(%x, %y), custom_call_target="__cublas$gemm", backend_config={\
"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
}
"""
CUDNN = """\
ENTRY %main (q: bf16[2,512,4,64]) -> bf16[2,4,512,64] {
  %q = bf16[2,512,4,64]{3,1,2,0} parameter(0)
  ROOT %z = (bf16[2,4,512,64]{3,2,1,0}, u8[0]{0}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax"
}
"""


@pytest.mark.parametrize(("text", "flops"), [(CUBLAS, 2 * 64 * 128 * 32), (CUDNN, 2 * 2 * 4 * 512**2 * 64)])
def test_kernels_of_gpus_have_flops(text, flops):
    assert [i.flops for i in executed(HloText.parse(text))] == [flops]


CONCURRENT = """\
%fused (stack: bf16[20,64], i: s32[]) -> bf16[1,64] {
  %stack = bf16[20,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %view = bf16[20,64]{1,0} bitcast(%stack)
  ROOT %slice = bf16[1,64]{1,0} dynamic-slice(%view, %i, %zero), dynamic_slice_sizes={1,64}
}

%wrapped (i.1: s32[], stack.1: bf16[20,64]) -> bf16[1,64] {
  %i.1 = s32[] parameter(0)
  %stack.1 = bf16[20,64]{1,0} parameter(1)
  ROOT %call = bf16[1,64]{1,0} fusion(%stack.1, %i.1), kind=kLoop, calls=%fused
}

ENTRY %main (x: bf16[20,64], n: s32[]) -> bf16[1,64] {
  %x = bf16[20,64]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %start = ((s32[], bf16[20,64]), bf16[1,64]{1,0}, u32[]) fusion-start(%n, %x), kind=kLoop, calls=%wrapped
  ROOT %done = bf16[1,64]{1,0} fusion-done(%start), calls=%wrapped
}
"""


def test_a_concurrent_slice_moves_a_part_of_the_array():
    assert [i.bytes for i in executed(HloText.parse(CONCURRENT))] == [4 + 2 * 64 * 2]  # the index, read and written
