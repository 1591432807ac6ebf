"""The layout: shardings by the names of dimensions, and the settings of the config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from engine.base.errors import ShardingError
from engine.config import load
from engine.config.schema import MeshSpec
from engine.parallel.layout import Layout, active, constrain, current, make_layout
from engine.parallel.mesh import make_mesh
from engine.parallel.rules import RULES


@pytest.fixture(scope="module")
def layout():
    return Layout(mesh=make_mesh(MeshSpec(data=2, context=2, tensor=2)))


def test_default_layout_has_one_device_and_no_constraint():
    assert current().mesh is None and current().platform == "cpu"
    assert current().size("tensor") == 1 and current().axes("batch") == ()
    x = jnp.ones((4, 6))
    assert constrain(x, "batch", "mlp") is x


def test_active_sets_the_current_layout(layout):
    with active(layout):
        assert current() is layout
        with active(Layout()):
            assert current().mesh is None
        assert current() is layout
    assert current() is not layout


def test_names_map_to_mesh_axes_of_several_devices(layout):
    assert layout.axes("batch") == ("data",)  # fsdp and expert have one device
    assert layout.axes("tokens") == ("context", "tensor")
    assert layout.axes("embed") == () and layout.axes(None) == ()
    assert layout.spec(("batch", "sequence", "mlp")) == P("data", "context", "tensor")


def test_axes_end_before_the_first_indivisible_axis(layout):
    assert layout.axes("tokens", 6) == ("context",)
    assert layout.axes("tokens", 3) == ()
    assert layout.spec(("batch", "mlp"), (3, 8)) == P(None, "tensor")


def test_each_mesh_axis_is_used_by_one_dimension(layout):
    assert layout.spec(("heads", "mlp")) == P("tensor", None)


def test_unknown_name_raises_sharding_error(layout):
    with pytest.raises(
        ShardingError, match=r"activation: no sharding rule for axis 'sequense'. Did you mean sequence\?"
    ):
        layout.axes("sequense")


def test_constrain_sets_the_sharding_of_an_activation(layout):
    def f(x):
        return constrain(x * 2, "batch", "sequence", "mlp")

    x = np.arange(4 * 6 * 8.0, dtype=np.float32).reshape(4, 6, 8)
    with active(layout):
        y = jax.jit(f)(x)
    assert y.sharding.spec == P("data", "context", "tensor")
    np.testing.assert_array_equal(y, x * 2)


def test_manual_axes_are_left_out(layout):
    seen = {}

    def inside(x):
        seen["size"], seen["axes"] = layout.size("data"), layout.axes("batch")
        seen["spec"] = layout.spec(("batch", "mlp"))
        return layout.constrain(x, "batch", "mlp") + 1

    x = np.zeros((4, 8), np.float32)
    f = jax.shard_map(inside, mesh=layout.mesh, in_specs=P("data"), out_specs=P("data"), axis_names={"data"})
    np.testing.assert_array_equal(jax.jit(f)(x), x + 1)
    assert seen == {"size": 1, "axes": (), "spec": P(None, "tensor")}


def test_use_records_the_axis():
    layout = Layout(mesh=make_mesh(MeshSpec(context=8)))
    assert layout.size("context") == 8 and "context" not in layout.used
    assert layout.use("context") == 8 and "context" in layout.used


@pytest.fixture
def config_file(tmp_path):
    file = tmp_path / "small.py"
    file.write_text(
        "from engine.config import defaults\n\n\n"
        "def get_config():\n"
        "    c = defaults()\n"
        '    c.task = dict(target="tests.zoo.Classify")\n'
        '    c.data = dict(target="tests.zoo.source")\n'
        '    c.sharding.rules = dict(vocab=("fsdp", "tensor"))\n'
        "    return c\n"
    )
    return file


def test_config_and_command_line_rules_override_defaults(config_file):
    overrides = ["sharding.rules.mlp=None", "sharding.rules.heads=(fsdp, tensor)", "sharding.rules.agents=context"]
    config = load(str(config_file), overrides)
    layout = make_layout(make_mesh(MeshSpec()), config.sharding, config.train)
    changed = {name: axes for name, axes in layout.rules.items() if RULES.get(name, "") != axes}
    assert changed == {"vocab": ("fsdp", "tensor"), "mlp": None, "heads": ("fsdp", "tensor"), "agents": "context"}


def test_config_sections_set_the_layout_fields(config_file):
    overrides = ["sharding.zero1=True", "sharding.context=all-to-all", "sharding.microbatches=4", "train.remat=full"]
    config = load(str(config_file), overrides)
    layout = make_layout(make_mesh(MeshSpec()), config.sharding, config.train)
    assert (layout.zero1, layout.context, layout.microbatches, layout.remat) == (True, "all-to-all", 4, "full")
    assert layout.repeats == 1 and not layout.offload_optimizer
