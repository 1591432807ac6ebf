"""A device whose arithmetic is wrong: a Task in which one device flips one bit of one product."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax import lax

from tests import zoo


@dataclasses.dataclass
class Faulty(zoo.Classify):
    """Flips one bit of one number of the last product that a device computes in the gradient check.

    The bit is one of the mantissa that rounding does not remove later. The fault belongs to the device: it hits the
    gradient of its own rows, and that of its neighbour's rows. The step itself is healthy, since only the check knows
    in Python which device computes.
    """

    device: int = 2
    since: int = 0
    """Step from which on the device is faulty."""

    def loss(self, model, batch, rng, context: Any = None):
        row = batch["valid"].argmax()  # one that counts
        return super().loss(lambda *args: self.flipped(model(*args), row, context.step), batch, rng)

    def flipped(self, product, row, step):
        """Returns the product with the flipped bit, and with the gradient of the healthy one."""
        if not jax.sharding.get_abstract_mesh().manual_axes:
            return product
        flips = (lax.axis_index(("data", "fsdp")) == self.device) & (step >= self.since)
        healthy = lax.stop_gradient(product)
        bits = lax.bitcast_convert_type(healthy, np.uint32)
        wrong = lax.bitcast_convert_type(
            bits.at[row, 0].set(bits[row, 0] ^ (flips.astype(np.uint32) << 12)), product.dtype
        )
        return product + (wrong - healthy)  # exact, since both have one exponent
