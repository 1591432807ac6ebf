"""What a traced program does with each parameter, whatever its name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from engine.training import parameter_uses as uses
from engine.training.parameter_uses import Matrix, uses_of

SIZE = 4
X = jnp.ones((3, SIZE))
MATRIX, LAST = Matrix((0,), (1,), is_last=False), Matrix((0,), (1,))


def find(f: Callable[[dict[str, Any], Any], Any], data: Any = X, only_first: bool = False, **shapes: tuple[int, ...]):
    """Returns the uses of parameters of these shapes in `f(parameters, data)`."""
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    jaxpr = jax.make_jaxpr(f)(params, data).jaxpr
    count = len(params)
    return uses_of(jaxpr, dict(enumerate(sorted(params))), range(count, len(jaxpr.invars)), only_first=only_first)


def test_last_product_is_an_output_layer_and_vectors_and_tables_are_none():
    def f(p, x):
        x = jnp.tanh(x @ p["first"] + p["bias"])
        x = x + p["table"][x[:, 0].astype(int)]
        x = jnp.concatenate([jnp.broadcast_to(p["token"], (1, SIZE)), x])
        return (x @ p["fc"]).sum() + (p["fc"] ** 2).sum()  # a penalty on a matrix is no use of it

    found = find(f, first=(SIZE, SIZE), bias=(SIZE,), table=(5, SIZE), token=(1, SIZE), fc=(SIZE, 7), unused=(2, 2))
    assert found == {
        "first": MATRIX, "fc": LAST, "bias": uses.ELEMENTWISE, "token": uses.ELEMENTWISE, "table": uses.LOOKED_UP,
        "unused": uses.UNUSED,
    }  # fmt: skip


def test_kernels_of_three_dimensions_are_matrices_whatever_is_done_to_them_before_the_product():
    def f(p, x):
        heads = jnp.einsum("bi,ihd->bhd", x, p["query"])
        heads = heads + (x @ p["flat"].reshape(SIZE, -1).astype(jnp.bfloat16)).reshape(3, 2, SIZE)
        x = jnp.einsum("bhd,hdo->bo", heads, p["out"] * 0.5)
        return x @ p["tied"][:, :3].T.T

    found = find(f, query=(SIZE, 2, SIZE), flat=(SIZE, 2, SIZE), out=(2, SIZE, SIZE), tied=(SIZE, 5))
    assert found == {
        "query": Matrix((0,), (1, 2), is_last=False),
        "flat": Matrix((0,), (1, 2), is_last=False),
        "out": Matrix((0, 1), (2,), is_last=False),
        "tied": LAST,
    }


def test_layers_of_a_scan_and_experts_are_matrices_of_their_own():
    def f(p, x):
        def body(x, layer):
            x = x + jnp.einsum("ebi,eio->ebo", jnp.stack([x] * 2), layer["experts"]).sum(0)
            return jax.checkpoint(lambda x: jnp.tanh(x @ layer["kernel"]))(x) * layer["scale"], None

        x = jax.lax.scan(body, x, {name: p[name] for name in ("kernel", "scale", "experts")})[0]
        return jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, s[1] @ p["loop"]), (0, x))[1] @ p["head"]

    shapes = {"kernel": (5, SIZE, SIZE), "scale": (5, SIZE), "experts": (5, 2, SIZE, SIZE)}
    found = find(f, **shapes, loop=(SIZE, SIZE), head=(SIZE, 2))
    assert found == {
        "kernel": Matrix((1,), (2,), is_last=False),
        "scale": uses.ELEMENTWISE,
        "experts": Matrix((2,), (3,), is_last=False),
        "loop": MATRIX,
        "head": LAST,
    }


def test_learned_queries_are_no_matrix_but_their_projection_is():
    def f(p, x):
        query = p["queries"] / p["queries"].std(-1, keepdims=True) @ p["project"]
        rows = jnp.broadcast_to(p["slots"], (3, 2, SIZE)) @ p["keys"]
        return jax.nn.softmax(query @ x.T) @ x @ p["value"] + rows.mean()

    found = find(f, queries=(3, SIZE), slots=(2, SIZE), project=(SIZE, SIZE), keys=(SIZE, SIZE), value=(SIZE, SIZE))
    assert found["project"] == Matrix((0,), (1,), is_last=False)
    assert (found["value"], found["keys"]) == (LAST, LAST)
    assert not isinstance(found["slots"], Matrix)


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda p, x: p["w"][x[:, 0].astype(int)] @ p["w"].T, uses.TIED),  # a tied embedding
        (lambda p, x: x @ p["w"][:, 0], uses.VECTOR),
        (lambda p, x: jax.lax.conv_general_dilated(x.T[None], p["w"][..., None], (1,), "SAME"), uses.CONVOLUTION),
        (lambda p, x: jax.pure_callback(lambda x, w: x, x, x, p["w"]), uses.OPAQUE),
    ],
    ids=["tied", "vector", "convolution", "callback"],
)
def test_other_uses_are_named(f, expected):
    assert find(f, w=(SIZE, SIZE))["w"] == expected


def test_product_that_only_chooses_integers_is_an_output_layer():
    def f(p, x):
        actions = (x @ p["policy"]).argmax(-1)
        return jax.nn.one_hot(actions, SIZE) @ p["model"]

    assert find(f, policy=(SIZE, SIZE), model=(SIZE, 2)) == {"policy": LAST, "model": LAST}


def test_gradients_do_not_count_where_only_the_first_use_does():
    def step(p, x):
        grads = jax.grad(lambda p: jnp.tanh(jnp.tanh(x @ p["hidden"]) @ p["head"]).sum())(p)
        return jax.tree.map(jnp.add, p, grads)

    expected, square = {"hidden": MATRIX, "head": LAST}, (SIZE, SIZE)
    assert find(step, only_first=True, hidden=square, head=square) == expected
    assert find(step, hidden=square, head=square) != expected
