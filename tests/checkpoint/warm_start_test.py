"""Warm start of a run with weights of another run: matching arrays on its mesh, or an error with both sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from engine.base.errors import CheckpointError, ConfigError
from engine.checkpoint.policy import Retention
from engine.checkpoint.warm_start import find_step, read_weights
from engine.config.schema import Init, InitSource
from engine.config.text import to_text
from engine.run.directory import RunDirectory
from tests import runs
from tests.checkpoint.saves import Saves


def arrays(first=0.0, width=8, **shapes):
    """Returns parameters by path: of a block, of a head, and others with the given shapes."""
    shapes = {"block/kernel": (4, width), "block/bias": (width,), "head/kernel": (width, 3), **shapes}
    made = {path: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for path, shape in shapes.items()}
    return {path: jnp.asarray(array + first) for path, array in made.items()}


def state(params, **more):
    return {"step": jnp.int32(7), "params": params, "carried": {}, "opt_state": {"mu": params}, **more}


def save(folder, state, step=500):
    store = Saves(folder / "checkpoints")
    store.save(step, state)
    store.close()
    return str(folder)


def abstract(params, carried=None, devices=1):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])

    def place(x):
        spec = PartitionSpec("data") if x.ndim == 2 and x.shape[0] % devices == 0 else PartitionSpec()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, {"params": params, "carried": carried or {}, "opt_state": {"mu": params}})


def read(folder, wanted, stacked=None, **paths):
    return read_weights(
        Init(checkpoint=folder, paths={p.replace("__", "/"): to for p, to in paths.items()}), wanted, stacked or {}
    )


def same(found, expected):
    assert {p: np.asarray(x).tolist() for p, x in found.items()} == {
        p: np.asarray(x).tolist() for p, x in expected.items()
    }


def test_parameters_and_model_state_are_read_onto_this_mesh(tmp_path):
    carried = {"norm/mean": jnp.arange(3.0)}
    folder = save(tmp_path, state(arrays(), carried=carried))
    wanted = abstract(arrays(), carried, devices=4)
    found = read(folder, wanted)
    same(found.params, arrays())
    same(found.model_state, carried)
    for path, array in found.params.items():
        assert array.sharding == wanted["params"][path].sharding
    assert found.message == (f"initialized 4 arrays from {tmp_path}/checkpoints/500; random: none; unused: none")


def test_averaged_weights_are_preferred(tmp_path):
    average = {path: x + 100 for path, x in arrays().items() if path != "head/kernel"}
    folder = save(tmp_path, state(arrays(), ema=average))
    found = read(folder, abstract(arrays()))
    same(found.params, {**arrays(), **average})
    assert "checkpoints/500, from its EMA where available; random: none; unused: none" in found.message


def test_init_paths_renames_moves_and_leaves_random(tmp_path):
    folder = save(tmp_path, state({**arrays(), "old/scale": jnp.ones(2)}))
    here = arrays(**{"teacher/block/kernel": (4, 8), "teacher/block/bias": (8,), "teacher/head/kernel": (8, 5)})
    found = read(folder, abstract(here), teacher="", teacher__head=None)
    there = arrays()
    same(
        found.params,
        {**there, "teacher/block/kernel": there["block/kernel"], "teacher/block/bias": there["block/bias"]},
    )
    found.params["block/bias"].delete()  # arrays do not share memory, so that a step may donate them
    same({"x": found.params["teacher/block/bias"]}, {"x": there["block/bias"]})
    assert found.message.endswith("; random: params/teacher/head/kernel; unused: params/old/scale")
    found = read(folder, abstract({"trunk/kernel": there["block/kernel"]}), trunk="block")
    same(found.params, {"trunk/kernel": there["block/kernel"]})


def test_regular_expressions_and_the_empty_prefix_map_paths(tmp_path):
    folder = save(tmp_path, state(arrays()))
    here = {f"net/{path.replace('block', 'layers/0')}": x for path, x in arrays().items()}
    paths = {r"^net/layers/\d+/bias$": None, r"^net/layers/\d+/": "block/", "net": ""}
    found = read_weights(Init(checkpoint=folder, paths=paths), abstract(here), {})
    same(found.params, {"net/layers/0/kernel": arrays()["block/kernel"], "net/head/kernel": arrays()["head/kernel"]})
    assert found.message.endswith("random: params/net/layers/0/bias; unused: params/block/bias")
    inner = save(tmp_path / "b", state({f"net/{path}": x for path, x in arrays().items()}))
    same(read_weights(Init(checkpoint=inner, paths={"": "net"}), abstract(arrays()), {}).params, arrays())


def test_sources_give_the_arrays_that_their_paths_name(tmp_path):
    camera, lidar, whole = (
        save(tmp_path / name, state(arrays(first), carried={"norm/mean": jnp.full(3, first)}))
        for name, first in (("camera", 10.0), ("lidar", 20.0), ("whole", 30.0))
    )
    here = {f"{side}/{path}": x for side in ("camera", "lidar") for path, x in arrays().items()} | arrays()
    statistics = {"camera/norm/mean": jnp.zeros(3), "norm/mean": jnp.zeros(3)}
    sources = {
        "camera": InitSource(checkpoint=camera, paths={"camera": ""}),
        "lidar": InitSource(checkpoint=lidar, paths={r"^lidar/(block)/": r"\1/", "lidar/head": None}),
    }
    init = Init(checkpoint=whole, sources=sources)
    found = read_weights(init, abstract(here, statistics, devices=2), {})
    expected = {f"camera/{path}": x for path, x in arrays(10.0).items()}
    expected |= {f"lidar/{path}": x for path, x in arrays(20.0).items() if "block" in path} | arrays(30.0)
    same(found.params, expected)
    same(found.model_state, {"camera/norm/mean": jnp.full(3, 10.0), "norm/mean": jnp.full(3, 30.0)})
    assert "random: params/lidar/head/kernel" in found.message

    found = read_weights(Init(sources=sources), abstract(here, statistics), {})
    same(found.params, {path: x for path, x in expected.items() if path not in arrays()})
    assert found.message.endswith("params/block/bias, params/block/kernel, params/head/kernel, carried/norm/mean")

    sources["lidar"] = InitSource(checkpoint=lidar, paths={"lidar": "missing"})
    with pytest.raises(CheckpointError, match=r"(?s)^init.sources.lidar.checkpoint: .*--config.init.sources.lidar"):
        read_weights(Init(sources=sources), abstract(here), {})
    sources["lidar"] = InitSource(checkpoint=f"{tmp_path}/none", paths={"lidar": ""})
    with pytest.raises(CheckpointError, match=r"^init.sources.lidar.checkpoint = '.*none': no checkpoint found"):
        read_weights(Init(sources=sources), abstract(here), {})


def test_mismatch_error_lists_both_sides(tmp_path):
    folder = save(tmp_path, state(arrays()))
    here = {**arrays(width=8), "head/kernel": jnp.zeros((8, 5)), "neck/bias": jnp.zeros(2)}
    with pytest.raises(CheckpointError) as error:
        read(folder, abstract(here), neck="block")
    assert str(error.value) == (
        f"init.checkpoint: {tmp_path}/checkpoints/500 does not fit this model:\n"
        "  params/head/kernel: here (8, 5) float32, there (8, 3) float32\n"
        "  params/neck/bias: here (2,) float32, there params/block/bias (8,) float32\n"
        "2 of 4 arrays here. Only there: none.\n"
        "Map them with init.paths, prefix here -> prefix there, or None for random initialization: "
        "--config.init.paths.head=None"
    )
    with pytest.raises(
        CheckpointError, match=r"neck/bias: here \(2,\) float32, there none\n1 of 2 .*Only there: params/block"
    ):
        read(folder, abstract({"neck/bias": jnp.zeros(2), "head/kernel": arrays()["head/kernel"]}))
    with pytest.raises(
        ConfigError, match=r"init.paths.hed: no parameter of this model has this prefix. Did you mean head\?"
    ):
        read(folder, abstract(arrays()), hed=None)


def test_floats_are_converted_between_precisions_but_not_to_integers(tmp_path):
    half = {path: x.astype(jnp.bfloat16) for path, x in arrays().items()}
    found = read(save(tmp_path, state(half)), abstract(arrays()))
    same(found.params, arrays())
    assert {x.dtype for x in found.params.values()} == {np.dtype("float32")}
    whole = {path: x.astype(jnp.int32) for path, x in arrays().items()}
    with pytest.raises(CheckpointError, match=r"here \(8,\) float32, there \(8,\) int32"):
        read(save(tmp_path / "b", state(whole)), abstract(arrays()))


def test_stack_of_layers_may_have_another_fold(tmp_path):
    stack = {"stack/kernel": jnp.arange(24.0).reshape(6, 4)}
    found = read(save(tmp_path, state(stack)), abstract({"stack/kernel": jnp.zeros((2, 3, 4))}), {"stack/kernel": 2})
    assert np.asarray(found.params["stack/kernel"]).ravel().tolist() == list(range(24))


def test_find_step_of_a_run_and_of_a_step_folder(tmp_path):
    def write(folder, **settings):
        run = RunDirectory(folder)
        for step in (3, 5):
            save(folder, state(arrays()), step)
        retention = Retention(run.checkpoints, 2)
        retention.record(3, {"heldout/loss": 0.5})
        retention.record(5, {"heldout/loss": 0.7})
        run.write_config_text(to_text(runs.config(**settings)))
        return str(run.checkpoints)

    newest = write(tmp_path / "newest")
    best = write(tmp_path / "best", checkpoint__best="heldout/loss", checkpoint__best_mode="min")
    assert find_step(str(tmp_path / "newest")) == (newest, 5)
    assert find_step(str(tmp_path / "best")) == (best, 3)
    assert find_step(f"{tmp_path}/best/checkpoints/5") == (best, 5)
    for place in (tmp_path, tmp_path / "best/checkpoints/4"):
        with pytest.raises(CheckpointError, match=r"no checkpoint found. Give a run directory such as runs/digits, or"):
            find_step(str(place))


def test_damaged_checkpoint_raises(tmp_path):
    folder = save(tmp_path, state(arrays()))
    for file in (tmp_path / "checkpoints/500/state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"/500: is damaged: state/.* found 0 bytes, .*Choose another step"):
        read(folder, abstract(arrays()))
