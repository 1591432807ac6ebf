"""The estimated time of a program: a roofline where XLA estimates no cycles. tests/aot has programs that have them."""

import jax
import jax.numpy as jnp
import pytest

from engine.compile.hlo_text import HloText
from engine.compile.step_time import CPU_BANDWIDTH, CPU_FLOPS, CPU_LINK, attention_flops, cycles, step_seconds
from engine.config.schema import MeshSpec
from engine.parallel.mesh import make_mesh

SIZE = 256
MESH = make_mesh(MeshSpec(), jax.devices()[:1])


def compiled(function, *shapes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


def test_a_product_takes_the_longer_of_its_flops_and_its_bytes():
    square = compiled(lambda x, y: x @ y, (SIZE, SIZE), (SIZE, SIZE))
    assert step_seconds(square, MESH, "float32") == pytest.approx(2 * SIZE**3 / CPU_FLOPS)
    column = compiled(lambda x, y: x @ y, (SIZE, SIZE), (SIZE, 1))
    assert step_seconds(column, MESH, "float32") == pytest.approx(4 * SIZE**2 / CPU_BANDWIDTH, rel=0.05)


def test_a_device_waits_for_synchronous_collectives():
    mesh = make_mesh(MeshSpec(data=2), jax.devices()[:2])
    shardings = jax.NamedSharding(mesh, jax.P("data")), jax.NamedSharding(mesh, jax.P())
    x = jax.ShapeDtypeStruct((2, SIZE), jnp.float32, sharding=shardings[0])
    summed = jax.jit(lambda x: x.sum(0), out_shardings=shardings[1]).lower(x).compile()
    moved = 4 * SIZE / CPU_LINK  # a ring of two devices sends the array once
    assert moved <= step_seconds(summed, mesh, "float32") < moved + 10 * 4 * SIZE / CPU_BANDWIDTH


TPU = """\
HloModule steps

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8]{0} get-tuple-element(%state), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %twice = f32[8]{0} add(%x, %x), backend_config={"estimated_cycles":"100"}
  %splash_mha_fwd = (bf16[2,4,256,128]{3,2,1,0}, f32[2,4,256,128]{3,2,1,0}) custom-call(%x), custom_call_target="tpu"
  ROOT %out = (s32[], f32[8]{0}) tuple(%next, %twice)
}

%condition (state: (s32[], f32[8])) -> pred[] {
  %state = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %end = s32[] constant(20)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8]{0}) tuple(%zero, %x)
  %loop = (s32[], f32[8]{0}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


def test_cycles_and_kernels_of_a_tpu_are_multiplied_out():
    program = HloText.parse(TPU)
    assert cycles(program) == 20 * 100
    assert attention_flops(program) == 20 * 2 * 2 * 4 * 256**2 * 128  # two products over half of all pairs
    of_one_row = HloText.parse(TPU.replace("[2,4,256,128]{3,2,1,0}", "[4,256,128]{2,1,0}"))
    assert attention_flops(of_one_row) == attention_flops(program) / 2
