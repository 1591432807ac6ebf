"""Sharding rules from named dimensions to mesh axes, their errors and warnings."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from engine.base.errors import ShardingError
from engine.config.schema import MeshSpec
from engine.parallel.mesh import make_mesh
from engine.parallel.rules import RULES, partition_spec, partition_specs, split_over_data, state_spec, warnings


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshSpec(data=1, fsdp=4, tensor=2))


def test_names_map_to_mesh_axes_by_the_rules(mesh):
    assert partition_spec("up/kernel", (32, 64), ("embed", "mlp"), RULES, mesh) == P("fsdp", "tensor")
    assert partition_spec("norm/scale", (32,), (None,), RULES, mesh) == P(None)
    rules = {**RULES, "mlp": ("fsdp", "tensor"), "embed": None}
    assert partition_spec("up/kernel", (32, 64), ("embed", "mlp"), rules, mesh) == P(None, ("fsdp", "tensor"))


def test_large_parameter_without_names_is_split_over_fsdp(mesh):
    assert partition_spec("kernel", (64, 128), None, RULES, mesh) == P(None, "fsdp")
    assert partition_spec("kernel", (64, 129), None, RULES, mesh) == P("fsdp", None)
    assert partition_spec("kernel", (63, 129), None, RULES, mesh) == P()
    assert partition_spec("bias", (64,), None, RULES, mesh) == P()


@pytest.mark.parametrize(
    ("shape", "names", "rules", "message"),
    [
        ((32, 62), ("embed", "mlpp"), RULES, r"up/kernel: no sharding rule for axis 'mlpp'. Did you mean mlp\?"),
        ((32, 63), ("embed", "mlp"), RULES, r"axis 'mlp' = 63 is not divisible by mesh axis tensor=2. Use a multiple"),
        ((32, 64), ("mlp", "vocab"), RULES, r"axes 'mlp' and 'vocab' are both mapped to mesh axis 'tensor'"),
        ((32, 64), ("mlp",), RULES, r"1 axis names \('mlp',\) for shape \[32, 64\]"),
        ((32, 64), ("mlp", None), {"mlp": "tensr"}, r"sharding.rules.mlp: no mesh axis 'tensr'. Did you mean tensor\?"),
    ],
)  # fmt: skip
def test_error_names_the_parameter_and_the_fix(mesh, shape, names, rules, message):
    with pytest.raises(ShardingError, match=message):
        partition_spec("up/kernel", shape, names, rules, mesh)


def test_rule_that_repeats_a_mesh_axis_raises_sharding_error(mesh):
    with pytest.raises(ShardingError, match=r"axes 'mlp' and 'mlp' are both mapped to mesh axis 'fsdp'"):
        partition_spec("up/kernel", (32, 64), (None, "mlp"), {"mlp": ("fsdp", "fsdp")}, mesh)


def test_stacked_parameters_without_names_are_split_per_layer(mesh):
    assert partition_spec("layers/kernel", (6, 64, 128), ("layers",), RULES, mesh) == P("pipeline", None, "fsdp")


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, "float32")


def test_error_lists_all_invalid_parameters(mesh):
    params = {f"layers/{i}/up": shape(32, 63) for i in range(7)} | {"down": shape(63, 32), "fine": shape(4)}
    names = {path: ("embed", "mlp") for path in params if path.startswith("layers")} | {"down": ("mpl", "embed")}
    with pytest.raises(ShardingError) as error:
        partition_specs(params, names, RULES, mesh)
    lines = str(error.value).splitlines()
    assert len(lines) == 6 and lines[0].startswith("layers/0/up: axis 'mlp' = 63") and lines[-1] == "(and 3 more)"
    assert partition_specs({"fine": shape(4)}, {}, RULES, mesh) == {"fine": P()}
    wrong = {**RULES, "mlp": "tensr"}
    with pytest.raises(ShardingError, match=r"^sharding.rules.mlp: no mesh axis 'tensr'[^\n]*$"):  # once
        partition_specs(params, {path: names[path] for path in list(params)[:7]}, wrong, mesh)


SPLIT = {"up": shape(1024, 2048)}  # 8 MiB
SPLIT_NAMES = {"up": ("embed", "mlp")}


def test_model_that_uses_its_mesh_gives_no_warning(mesh):
    assert warnings(SPLIT, SPLIT_NAMES, RULES, mesh) == []
    small = {**SPLIT, "bias": shape(63)}
    assert warnings(small, SPLIT_NAMES, RULES, mesh) == []
    assert warnings({"bias": shape(63)}, {}, RULES, make_mesh(MeshSpec())) == []


def test_large_replicated_parameter_gives_a_warning(mesh):
    params = {**SPLIT, "odd": shape(1023, 1025), "named": shape(1024, 512), "small": shape(511, 511)}
    names = {**SPLIT_NAMES, "named": ("heads", None)}
    assert warnings(params, names, RULES, mesh) == [
        "odd [1023, 1025], 4.0 MiB, is replicated over mesh axis fsdp=4: no dimension is divisible by 4. "
        "Use a multiple of 4, or another mesh.fsdp.",
        "named [1024, 512], 2.0 MiB, is replicated over mesh axis fsdp=4: none of its axes ('heads', None) is "
        "mapped to fsdp. Map one in sharding.rules.",
    ]
    huge = {"up": shape(2**15, 2**13), "odd": shape(1023, 1025)}  # 4 MiB are below 1 % of 1 GiB
    assert warnings(huge, SPLIT_NAMES, RULES, mesh) == []
    many = {**SPLIT, **{f"odd/{i}": shape(1023, 1025) for i in range(8)}}
    assert warnings(many, SPLIT_NAMES, RULES, mesh)[-1] == "(and 3 more such parameters)"


def test_unused_mesh_axis_gives_a_warning(mesh):
    (text,) = warnings({"up": shape(64, 128)}, {}, RULES, mesh)
    assert text == (
        "mesh.tensor = 2 splits no parameter, so these devices hold identical parameters and repeat the same "
        "computation. Name dimensions 'mlp' or 'heads' or 'kv_heads' or 'vocab' in the model, or use mesh.tensor=1."
    )
    assert warnings({"up": shape(8)}, {}, RULES, make_mesh(MeshSpec(fsdp=8))) == [
        "mesh.fsdp = 8 splits no parameter, so these devices hold identical parameters. Name dimensions 'embed' in "
        "the model, or use mesh.fsdp=1."
    ]


def test_rule_for_an_unknown_name_gives_a_warning(mesh):
    (text,) = warnings(SPLIT, SPLIT_NAMES, {**RULES, "mlpp": None}, mesh)
    assert text == "sharding.rules.mlpp: no parameter has an axis of this name. Did you mean mlp?"
    params, names = {**SPLIT, "mine": shape(8)}, {**SPLIT_NAMES, "mine": ("agents",)}
    assert warnings(params, names, {**RULES, "agents": None}, mesh) == []


STACK, STACK_SPEC = (4, 64, 256), P("pipeline", "fsdp", "tensor")


@pytest.mark.parametrize(
    ("shape", "param", "spec", "expected"),
    [
        (STACK, STACK, STACK_SPEC, STACK_SPEC),  # a moment
        ((4, 64, 64), STACK, STACK_SPEC, P("pipeline", "fsdp", "tensor")),  # g g^T: rows keep their split
        ((4, 256, 256), STACK, STACK_SPEC, P("pipeline", "fsdp", "tensor")),  # g^T g: columns keep theirs
        ((4, 256), STACK, STACK_SPEC, P("pipeline", ("fsdp", "tensor"))),  # a column of Adafactor
        ((4, 64, 1), STACK, STACK_SPEC, P()),  # 256 numbers
        ((4, 1, 256), STACK, STACK_SPEC, P("pipeline", None, ("tensor", "fsdp"))),  # one number for each output
        ((4, 48, 48), (4, 48, 2, 8), P("pipeline", None, "tensor"), P("pipeline", "tensor", None)),  # heads
        ((63, 63), (64, 63), P("fsdp", None), P(None, None)),  # nothing divides 63
        ((64, 64), (4, 64), P(), P("fsdp", None)),  # the factor of a small parameter
        ((1,), STACK, STACK_SPEC, P()),
    ],
)
def test_state_of_another_shape_is_split_over_the_axes_of_its_parameter(shape, param, spec, expected):
    mesh = make_mesh(MeshSpec(pipeline=2, fsdp=2, tensor=2))
    assert state_spec(shape, param, spec, mesh) == expected


def test_zero1_splits_state_of_another_shape_over_data():
    mesh = make_mesh(MeshSpec(data=4, tensor=2))
    spec = split_over_data(P(None, "tensor"), (64, 256), mesh)
    assert spec == P(None, ("tensor", "data"))
    assert state_spec((64, 64), (64, 256), spec, mesh) == P("tensor", "data")
    assert state_spec((256, 256), (64, 256), spec, mesh) == P(None, ("tensor", "data"))
