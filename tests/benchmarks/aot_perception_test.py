"""Costs of operations of perception: padding of layouts, and the programs that are compiled."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.aot import perception
from engine.compile.hlo_text import HloText

PADDED = """HloModule test

ENTRY %main (a: f32[20,3]) -> f32[20,3] {
  %a = f32[20,3]{1,0:T(8,128)} parameter(0)
  %b = bf16[20,3]{1,0:T(8,128)(2,1)} convert(%a)
  ROOT %c = f32[20,3]{0,1:T(4,128)} copy(%b)
}
"""


def test_layouts_are_padded_to_their_tiles():
    assert perception.tiled_bytes("f32[20,3]{1,0:T(8,128)}") == 4 * 24 * 128
    assert perception.tiled_bytes("(f32[20,3]{0,1:T(4,128)}, pred[5]{0:T(512)})") == 4 * 128 * 4 + 512
    assert perception.tiled_bytes("f32[20,3]{1,0}") == 4 * 60
    stored, tiles = 2 * 60 + 4 * 60, 2 * 24 * 128 + 4 * 4 * 128
    np.testing.assert_allclose(perception.padding(HloText.parse(PADDED)), 1 - stored / tiles)


def test_program_has_the_value_and_the_gradients_of_the_first_inputs():
    run = jax.jit(perception.differentiated(lambda x, y: x * y, 1))
    value, gradients = run((jnp.array([2.0]), jnp.array([3.0])), jnp.array([5.0]))
    assert value == 6 and gradients[0] == 15
    assert perception.differentiated(lambda x: x + 1, 0)((1,), None) == (2, ())
