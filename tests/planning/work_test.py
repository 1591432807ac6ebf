import jax
import jax.numpy as jnp

from engine.planning.graph import make_graph
from engine.planning.work import measure


def test_work_multiplies_loops_and_finds_sums_over_split_parameters():
    """3 layers `up` and `down` split over `tensor`: a partial sum after `down`, and in the gradient one before `up`."""
    rows, width, hidden, layers = 8, 16, 64, 3

    def loss(up, down, x):
        def layer(x, w):
            return x + jnp.tanh(x @ w[0]) @ w[1], None

        return jax.lax.scan(layer, x, (up, down))[0].sum()

    shapes = ((layers, width, hidden), (layers, hidden, width), (rows, width))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    graph = make_graph(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*arrays).jaxpr)
    params = {
        graph.inputs[0]: ("up", ("layers", "embed", "mlp")),
        graph.inputs[1]: ("down", ("layers", "mlp", "embed")),
    }
    axes = {"mlp": ("tensor",), "embed": ("fsdp",), "layers": ("pipeline",)}
    work = measure(graph, params, lambda name: axes.get(name or "", ()), balance=1.0)
    assert work.flops == 3 * layers * 2 * (2 * rows * width * hidden)  # forward, and two products of the gradient
    assert work.sums == 2 * layers
    assert work.partial == 2 * layers * rows * width * 4
    assert work.uses == {"up": 2 * layers, "down": 2 * layers}
    assert work.cost >= work.flops


def test_work_has_the_queries_and_the_keys_of_attention():
    def loss(query, key, x):
        return ((x @ query) * (x @ key).sum()).sum()

    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((16, 32), (16, 8), (4, 16))]
    graph = make_graph(jax.make_jaxpr(loss)(*arrays).jaxpr)
    params = {graph.inputs[0]: ("query", ("embed", "heads")), graph.inputs[1]: ("key", ("embed", "kv_heads"))}
    work = measure(graph, params, lambda name: (), balance=1.0)
    assert (work.queries, work.keys) == (4 * 32 * 4, 4 * 8 * 4)


def test_narrow_products_and_convolutions_take_their_share_of_the_rate():
    """The product has the dimensions 32, 16 and 64 for each of 4 rows; a convolution has its own share."""

    def loss(x, w, images, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        convolved = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return jnp.einsum("brk,bkn->brn", x, w), convolved

    shapes = ((4, 32, 16), (4, 16, 64), (2, 8, 8, 3), (3, 3, 3, 4))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    graph = make_graph(jax.make_jaxpr(loss)(*arrays).jaxpr)
    product, convolution = 2 * 4 * 32 * 16 * 64, 2 * 2 * 8 * 8 * 4 * 9 * 3
    assert measure(graph, {}, lambda name: (), balance=1.0).cost == product + convolution
    found = measure(graph, {}, lambda name: (), balance=1.0, share=lambda size: {16: 0.5, None: 0.25}[size])
    assert found.cost == 2 * product + 4 * convolution
