import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from engine.checkpoint.tree_compat import SHOWN, Leaf, difference, leaves_of, other_folds, with_stored_folds


def test_leaf_paths_join_keys_fields_and_indices():
    tree = {"opt_state": optax.adam(1.0).init({"encoder/0/kernel": jnp.zeros((2, 3))})}
    assert leaves_of(tree) == {
        "opt_state/0/count": Leaf((), "int32"),
        "opt_state/0/mu/encoder/0/kernel": Leaf((2, 3), "float32"),
        "opt_state/0/nu/encoder/0/kernel": Leaf((2, 3), "float32"),
    }


def test_abstract_and_concrete_arrays_have_equal_leaves():
    abstract = {"w": jax.ShapeDtypeStruct((4,), jnp.bfloat16)}
    assert leaves_of(abstract) == leaves_of({"w": jnp.zeros((4,), jnp.bfloat16)})


def test_equal_trees_have_no_difference():
    side = {"params/w": Leaf((2,), "float32")}
    assert difference(side, dict(side)) is None


def test_difference_names_shapes_dtypes_and_missing_leaves():
    stored = {
        "same": Leaf((1,), "float32"),
        "shape": Leaf((512, 2048), "float32"),
        "dtype": Leaf((2,), "float32"),
        "gone": Leaf((), "int32"),
    }
    wanted = {
        "same": Leaf((1,), "float32"),
        "shape": Leaf((512, 1024), "float32"),
        "dtype": Leaf((2,), "bfloat16"),
        "new": Leaf((3,), "float32"),
    }
    assert difference(stored, wanted) == (
        "dtype: checkpoint (2,) float32, model (2,) bfloat16.\n"
        "gone: checkpoint () int32, model has none.\n"
        "new: checkpoint has none, model (3,) float32.\n"
        "shape: checkpoint (512, 2048) float32, model (512, 1024) float32.\n"
        "4 of 5 leaves differ: 1 new in the model, 1 only in the checkpoint, 2 changed."
    )


def test_difference_lists_parameters_first():
    def side(width):
        return {f"{top}/w": Leaf((width,), "float32") for top in ("ema", "opt_state/mu", "params")}

    lines = (difference(side(2), side(3)) or "").splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["params/w", "ema/w", "opt_state/mu/w"]


STACK = {"decoder/layers/w": 2}  # the program needs two dimensions: [repeats, layers of a repeat]


@pytest.mark.parametrize(
    ("stored", "wanted", "fold"),
    [
        ((8, 4, 6), (2, 4, 4, 6), (1, 2)),
        ((4, 2, 4, 6), (2, 4, 4, 6), (2, 2)),
        ((8,), (2, 4), (1, 2)),
    ],
)
def test_other_folds_recognizes_a_stack_with_another_fold(stored, wanted, fold):
    for path in ("params/decoder/layers/w", "opt_state/0/mu/decoder/layers/w", "ema/decoder/layers/w"):
        found = other_folds({path: Leaf(stored, "float32")}, {path: Leaf(wanted, "float32")}, STACK)
        assert found == {path: fold}


def test_stored_fold_keeps_the_sharding_of_the_layers():
    mesh = jax.make_mesh((2, 4), ("pipeline", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    path = "decoder/layers/w"

    def read(shape, spec, stored, fold):
        want = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        found = with_stored_folds({path: want}, {path: Leaf(stored, "float32")}, {path: fold})[path]
        assert found.shape == stored
        return tuple(found.sharding.spec)

    assert read((2, 4, 4), P(None, "pipeline", "fsdp"), (8, 4), (1, 2)) == ("pipeline", "fsdp")
    assert read((8, 4), P("pipeline", "fsdp"), (2, 4, 4), (2, 1)) == (None, "pipeline", "fsdp")
    assert read((8, 4), P("pipeline", "fsdp"), (8, 1, 4), (2, 1)) == (
        None,
        None,
        "fsdp",
    )  # 1 does not divide
    assert read((2, 4, 4), P(), (8, 4), (1, 2)) == (None, None)


@pytest.mark.parametrize(
    ("path", "stored", "wanted"),
    [
        ("params/decoder/layers/w", Leaf((2, 4, 4, 6), "float32"), Leaf((2, 4, 4, 6), "float32")),  # the same
        ("params/decoder/layers/w", Leaf((6, 4, 6), "float32"), Leaf((2, 4, 4, 6), "float32")),  # fewer layers
        ("params/decoder/layers/w", Leaf((8, 6, 4), "float32"), Leaf((2, 4, 4, 6), "float32")),  # other layers
        ("params/decoder/layers/w", Leaf((8, 4, 6), "bfloat16"), Leaf((2, 4, 4, 6), "float32")),
        ("params/decoder/layers/w", Leaf((32, 6), "float32"), Leaf((2, 4, 4, 6), "float32")),
        ("params/other/layers/w", Leaf((8, 4, 6), "float32"), Leaf((2, 4, 4, 6), "float32")),  # no stack
    ],
)
def test_other_differences_are_no_folds(path, stored, wanted):
    assert other_folds({path: stored}, {path: wanted}, STACK) == {}
    assert other_folds({}, {path: wanted}, STACK) == {}


def test_difference_names_the_first_leaves_and_counts_the_rest():
    stored = {f"layer_{i:03}": Leaf((i,), "float32") for i in range(100)}
    lines = (difference(stored, {}) or "").splitlines()
    assert len(lines) == SHOWN + 2
    assert lines[-2] == f"... and {100 - SHOWN} more."
    assert lines[-1] == "100 of 100 leaves differ: 0 new in the model, 100 only in the checkpoint, 0 changed."
