"""Weights by their name on Hugging Face, from a server on this machine, and what is said where they cannot be had."""

import json
import sys

import jax
import pytest
from flax import nnx
from safetensors.numpy import save

from engine import hub
from engine.base.errors import CheckpointError
from engine.checkpoint.warm_start import read_weights
from engine.config.schema import Init
from engine.hub.download import locate, locate_everywhere
from tests.hub.hub_server import COMMIT, NAME, hub_server
from tests.hub.subjects import Net, expected, made, same, there, values

WANTED = ["config.json", "model.safetensors"]


@pytest.fixture
def sent(tmp_path):
    others = ("model.py", "pytorch_model.bin", "onnx/model.safetensors", "consolidated.safetensors", "README.md")
    files = {"model.safetensors": save(there()), "config.json": json.dumps({}).encode()}
    with hub_server({**files, **dict.fromkeys(others, b"no")}, str(tmp_path / "cache")) as found:
        yield found


def test_name_is_downloaded_once_and_only_its_data(sent, tmp_path):
    net = made(Net)
    assert hub.load(net, NAME) == f"initialized 8 arrays from hf:{NAME}@{COMMIT}; random: none; unused: none"
    same(values(net), expected(there()))
    assert sorted(sent) == WANTED
    found = locate(f"{NAME}@{COMMIT}", "load")
    assert found.path.is_relative_to(tmp_path) and sorted(sent) == WANTED  # from the cache
    assert sorted(path.name for path in found.path.iterdir()) == WANTED


def test_run_records_the_revision(sent):
    module = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    specs = {"/".join(map(str, path)): jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=device) for path, v in flat}
    found = read_weights(Init(checkpoint=f"hf:{NAME}"), {"params": specs, "carried": {}}, {}, module)
    same(found.params, expected(there()))
    assert [(one.role, one.path) for one in found.inputs] == [("init", f"hf:{NAME}@{COMMIT}")]


def test_local_folder_comes_before_a_name(sent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    assert locate_everywhere(NAME, "x").name == NAME and not sent


@pytest.mark.parametrize(
    ("text", "reason"),
    [("owner/none", "it does not exist, or needs `hf auth login`"), (f"{NAME}@v2", f"{NAME} has no revision 'v2'")],
)
def test_unknown_name_is_one_sentence(sent, text, reason):
    with pytest.raises(CheckpointError) as error:
        locate(text, "init.checkpoint")
    assert str(error.value) == (
        f"init.checkpoint = hf:{text}: no such file or folder here, and as a name on Hugging Face, {reason}. Check the "
        "name; or download its safetensors files on another machine, and give the path of their folder."
    )


@pytest.mark.parametrize("text", ["folder/model.safetensors", "./a/b", "resnet", "a/b/c", "a/../b"])
def test_a_path_is_no_name(sent, text):
    with pytest.raises(CheckpointError, match=r"no such file or folder\. Give a safetensors file, a folder"):
        locate(text, "load")
    assert not sent


def test_without_network_the_cache_serves(sent, monkeypatch):
    import huggingface_hub.constants as constants

    locate(NAME, "load")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    assert locate(f"{NAME}@{COMMIT}", "load").path.name == COMMIT == locate(NAME, "load").path.name
    with pytest.raises(CheckpointError, match=r"cannot be downloaded .*[Cc]onnect.*on another machine"):
        locate("timm/other", "load")


def test_absent_client_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"it needs huggingface_hub: pip install .*hub\]'?\. Check the name"):
        locate("timm/other", "load")
