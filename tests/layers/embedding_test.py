"""Embed: lookup by id, with a split table or not, and the table as a kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from engine.compile.collectives import collectives
from engine.config.schema import MeshSpec
from engine.layers import Embed
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import make_mesh


def test_embed_looks_up_rows_and_provides_a_kernel():
    embed = Embed(10, 4, rngs=nnx.Rngs(0))
    table, ids = embed.table.get_value(), jnp.array([[1, 9], [0, 1]])
    assert jnp.array_equal(embed(ids), table[ids])
    assert jnp.array_equal(embed.kernel, table.T)
    assert embed.table.get_metadata()["logical_axes"] == ("vocab", "embed")


def program(mesh, count, dtype=jnp.float32):
    """The compiled lookup and its gradient, for 8 x 4 ids."""
    graph, params = nnx.split(Embed(count, 16, rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    ids = jax.random.randint(jax.random.key(1), (8, 4), 0, count)
    factors = jax.random.normal(jax.random.key(2), (8, 4, 16), dtype)

    def loss(params, ids):
        with active(Layout(mesh=mesh)):
            y = nnx.merge(graph, params)(ids)
        return (y * factors).sum(), y

    if mesh is not None:
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec("tensor", "fsdp")))
        ids = jax.device_put(ids, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    compiled = jax.jit(jax.grad(loss, has_aux=True)).lower(params, ids).compile()
    return compiled.as_text() or "", jax.device_get(compiled(params, ids))


@pytest.mark.parametrize("count", [4, 64])  # fewer and more than the ids of a device
@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 2, "tensor": 4}, {"data": 8}], ids=str)
def test_split_table_gives_equal_values_and_gradients(mesh, count):
    _, found = program(make_mesh(MeshSpec(**mesh)), count)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, program(None, count)[1])


def test_large_table_is_looked_up_where_it_is_stored():
    mesh = make_mesh(MeshSpec(fsdp=8))
    found = collectives(program(mesh, 64)[0], mesh)
    assert [c.count for c in found if c.kind == "all-to-all"]
    assert max(c.bytes for c in found) <= 4 * 8 * 4 * 16  # vectors of all ids; not the table
    assert "all-to-all" not in {c.kind for c in collectives(program(mesh, 4)[0], mesh)}


def test_half_precision_table_has_a_gradient_close_to_that_of_one_device():
    wanted, found = (program(mesh, 64, jnp.bfloat16)[1][0] for mesh in (None, make_mesh(MeshSpec(data=2, fsdp=4))))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=2**-5), found, wanted
    )
