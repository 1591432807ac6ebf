"""Rules: from named dimensions to mesh axes, with errors that name the parameter."""

import pytest
from jax.sharding import PartitionSpec as P

from engine.config.errors import ShardingError
from engine.config.schema import MeshSpec
from engine.parallel.mesh import make_mesh
from engine.parallel.rules import RULES, partition_spec


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshSpec(data=1, fsdp=4, tensor=2))


def test_names_go_to_axes_by_the_table(mesh):
    assert partition_spec("up/kernel", (32, 64), ("embed", "mlp"), RULES, mesh) == P("fsdp", "tensor")
    assert partition_spec("norm/scale", (32,), (None,), RULES, mesh) == P(None)
    rules = {**RULES, "mlp": ("fsdp", "tensor"), "embed": None}
    assert partition_spec("up/kernel", (32, 64), ("embed", "mlp"), rules, mesh) == P(None, ("fsdp", "tensor"))


def test_a_parameter_without_names_is_split_over_fsdp_where_it_is_large(mesh):
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
def test_errors_name_the_parameter_and_the_fix(mesh, shape, names, rules, message):
    with pytest.raises(ShardingError, match=message):
        partition_spec("up/kernel", shape, names, rules, mesh)
