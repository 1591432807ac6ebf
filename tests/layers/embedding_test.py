"""Embed: lookup by id, with a split table or not, and the table as a kernel."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from engine.config.schema import MeshSpec
from engine.layers import Embed
from engine.parallel.mesh import make_mesh


def test_embed_looks_up_rows_and_provides_a_kernel():
    embed = Embed(10, 4, rngs=nnx.Rngs(0))
    table, ids = embed.table.get_value(), jnp.array([[1, 9], [0, 1]])
    assert jnp.array_equal(embed(ids), table[ids])
    assert jnp.array_equal(embed.kernel, table.T)
    assert embed.table.get_metadata()["logical_axes"] == ("vocab", "embed")


def test_split_table_gives_an_equal_gradient():
    mesh = make_mesh(MeshSpec(fsdp=2, tensor=4))
    table, ids = jax.random.normal(jax.random.key(0), (16, 4)), jnp.arange(16).reshape(4, 4)
    split = jax.device_put(table, NamedSharding(mesh, PartitionSpec("tensor", "fsdp")))
    gradient = jax.jit(jax.grad(lambda table: (table[ids] ** 2).sum()))
    np.testing.assert_allclose(gradient(split), gradient(table), rtol=1e-6)
