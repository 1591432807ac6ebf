"""Weights of other programs in a model of this engine: by tables of names, on a mesh, and where they do not fit."""

import sys
import textwrap
from pathlib import Path

import huggingface_hub.constants
import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from engine import hub
from engine.base.errors import CheckpointError
from engine.checkpoint.warm_start import read_weights
from engine.config.schema import Init, InitSource
from engine.hub.weights import Weights
from tests import runs
from tests.hub.hub_server import COMMIT, NAME, hub_server
from tests.hub.subjects import DEPTH, WIDTH, Model, Net, expected, made, numbers, same, there, values, write


@pytest.fixture
def file(tmp_path):
    """Returns a function that writes arrays to a file."""

    return lambda arrays: write(tmp_path, arrays)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_arrays_are_renamed_transposed_split_joined_and_stacked(file, prefix):
    net = made(Net)
    assert (
        hub.load(net, file(there(prefix)))
        == f"initialized 8 arrays from {file(there(prefix))}; random: none; unused: none"
    )
    same(values(net), expected(there()))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_precisions_are_converted(file, dtype):
    net = made(Net)
    hub.load(net, file(there(dtype=dtype)))
    same(values(net), expected({name: x.astype(np.float32) for name, x in there(dtype=dtype).items()}))


def test_head_of_another_size_stays_random_and_is_named(file):
    net = made(Net)
    before = values(net)
    message = hub.load(net, file({**there(head=7), "extra": numbers(2)}))
    same(values(net), {**expected(there()), **{name: x for name, x in before.items() if name.startswith("head/")}})
    assert "random: head/bias (here [3], which is [3] there, but there is head.bias F32 [7]), head/kernel (" in message
    assert "unused: extra F32 [2], head.bias F32 [7]" in message


def test_layers_that_only_the_checkpoint_has_are_a_warning(file):
    net, more = made(Net), {f"h.{DEPTH + 1}.qv.weight": numbers(2 * WIDTH, WIDTH)}
    message = hub.load(net, file(there() | more))
    same(values(net), expected(there()))
    assert message.endswith(
        f"unused: h.{DEPTH + 1}.qv.weight F32 [8, 4]; warning: h.{{layer}} has {DEPTH + 2} layers there and {DEPTH} "
        "here; the last are left out"
    )


def test_part_of_a_model_is_read_by_paths(file):
    model = made(Model)
    own = values(model.own, "own/")
    hub.load(model, file(there()), {"backbone": "", "own": None})
    same(values(model), {**{f"backbone/{name}": x for name, x in expected(there()).items()}, **own})
    arrays = {**there("net."), "proj.w": numbers(2, 2), "proj.bias": numbers(2)}
    hub.load(model, file(arrays), {"backbone": "net", "^own/kernel$": "proj.w", "^own/bias$": "proj/bias"})
    same(values(model.own), {"kernel": numbers(2, 2).T, "bias": numbers(2)})


def test_each_device_reads_only_its_part(file, monkeypatch):
    """On a mesh of 8 devices, with and without repeats of a pipeline."""
    mesh = jax.make_mesh((2, 4), ("pipeline", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    module = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    axes = {
        "stack/layers/query/kernel": ("pipeline", "fsdp"),
        "embed/table": ("fsdp",),
        "conv/kernel": (None,) * 3 + ("fsdp",),
    }
    axes["stack/layers/gate_up/kernel"] = ("pipeline", None, "fsdp")
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    specs = {
        name: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes.get(name, ()))))
        for path, v in flat
        for name in ["/".join(map(str, path))]
    }
    reads = []
    whole_read = Weights.read
    monkeypatch.setattr(
        Weights, "read", lambda self, name, index: reads.append(whole_read(self, name, index)) or reads[-1]
    )
    state = {"params": specs, "carried": {}}
    found = read_weights(Init(checkpoint=f"hf:{file(there())}"), state, {}, module)
    same(found.params, expected(there()))
    assert all(found.params[name].sharding == spec.sharding for name, spec in specs.items())
    stored = sum(x.nbytes for x in there().values())
    assert sum(x.nbytes for x in reads) == stored  # nothing is read twice
    assert max(x.nbytes for x in reads) <= max(x.nbytes for x in there().values())
    one = found.inputs[0]
    assert (one.kind, one.role, one.path) == ("checkpoint", "init", str(file(there()))) and len(one.id) == 16


def test_a_source_gives_a_part_and_another_checkpoint_is_not_needed(file):
    module = nnx.eval_shape(lambda: Model(nnx.Rngs(0)))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    specs = {"/".join(map(str, path)): jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=device) for path, v in flat}
    sources = {"net": InitSource(checkpoint=f"hf:{file(there())}", paths={"backbone": ""})}
    found = read_weights(Init(sources=sources), {"params": specs, "carried": {}}, {}, module)
    same(found.params, {f"backbone/{name}": x for name, x in expected(there()).items()})
    assert found.message.endswith("; random: params/own/bias, params/own/kernel")


def test_absent_folder_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"hf:.*/none: no such file or folder. Give a safetensors file"):
        read_weights(Init(checkpoint=f"hf:{tmp_path}/none"), {"params": {}, "carried": {}}, {}, made(Net))


MIB = 1 << 20
COUNT, WIDTH_MEMORY = 24, 1024  # arrays of 4 MiB
PROGRAM = """
import pathlib, re, sys
import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from engine.checkpoint.warm_start import read_weights
from engine.cluster import cluster_detection, group, processes
from engine.config.schema import Init
from engine.hub.weights import Weights

def memory():
    return 1024 * int(re.search(r"RssAnon:\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])

class Many(nnx.Module):
    def __init__(self, width):
        self.layers = nnx.List([nnx.Linear(width, width, use_bias=False, rngs=nnx.Rngs(0)) for _ in range(COUNT)])

def read(file, width):
    module = nnx.eval_shape(lambda: Many(width))
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    specs = {"/".join(map(str, p)): jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=split) for p, v in flat}
    return read_weights(Init(checkpoint=f"hf:{file}"), {"params": specs, "carried": {}}, {}, module)

processes.initialize(cluster_detection.detect().process)
mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
whole_read, seen = Weights.read, []

def measured(self, name, index):
    found = whole_read(self, name, index)
    seen.append(memory())
    return found

Weights.read = measured
import huggingface_hub.constants as constants
constants.ENDPOINT, constants.HF_HUB_CACHE = ADDRESS, f"{CACHES}/{group.index() // 2}"  # as on two hosts
constants.HUGGINGFACE_CO_URL_TEMPLATE = ADDRESS + "/{repo_id}/resolve/{revision}/{filename}"
print("name:", read(NAME, 8).inputs[0].path, flush=True)
read(SMALL, 8)  # imports, threads and programs
before = memory()
seen.clear()
found = read(LARGE, WIDTH)
held = sum(x.addressable_shards[0].data.nbytes for x in found.params.values())
print("memory:", held, max([*seen, memory()]) - before, flush=True)
processes.leave()
"""


@pytest.mark.multiprocess
def test_four_processes_download_on_each_host_and_hold_only_their_shares(tmp_path):
    """Two processes share each cache. They then read 96 MiB: at most a quarter of it and one array is in memory."""
    files = {}
    for name, width in (("SMALL", 8), ("LARGE", WIDTH_MEMORY)):
        files[name] = f"{tmp_path}/{name}.safetensors"
        save_file({f"layers.{i}.weight": np.ones((width, width), np.float32) for i in range(COUNT)}, files[name])
    files |= {"NAME": NAME, "CACHES": str(tmp_path)}
    content = {"model.safetensors": Path(files["SMALL"]).read_bytes()}
    with hub_server(content, str(tmp_path / "unused")) as sent:
        files["ADDRESS"] = huggingface_hub.constants.ENDPOINT
        done = _in_four_processes(files)
    assert done.returncode == 0, done.stderr
    names = [line.partition("name: ")[2] for line in done.stdout.splitlines() if "name: " in line]
    assert names == [f"hf:{NAME}@{COMMIT}"] * 4 and sent == ["model.safetensors"] * 2
    measured = [line.split()[-2:] for line in done.stdout.splitlines() if "memory:" in line]
    array = 4 * WIDTH_MEMORY**2
    assert [int(held) for held, _ in measured] == [COUNT * array // 4] * 4
    assert max(int(peak) for _, peak in measured) <= COUNT * array // 4 + array + 4 * MIB, measured


def _in_four_processes(files):
    head = "\n".join(f"{name} = {file!r}" for name, file in files.items())
    program = f"{head}\nCOUNT, WIDTH = {COUNT}, {WIDTH_MEMORY}\n{PROGRAM}"
    launcher = textwrap.dedent(f"""
        import sys
        from engine.launch.local import launch
        sys.exit(launch([sys.executable, "-c", {program!r}], processes=4, devices=1))
    """)
    return runs.run([sys.executable, "-c", launcher])
