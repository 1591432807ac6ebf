"""Proposals of `init.paths` for weights with other names: what is found, what is called ambiguous, and what decides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from convoy_zoo.models.backbones.resnet import ResNet
from convoy_zoo.models.backbones.vit import VARIANTS, VisionTransformer
from engine import hub
from engine.base.errors import CheckpointError
from engine.hub.importing import import_weights, open_weights, propose_paths
from engine.hub.path_files import read_paths
from engine.hub.proposal import propose
from engine.hub.weights import Weights
from tests.hub.subjects import numbers, same, values

RENAMED = {"conv": "c", "bn": "n", "layer": "stages.", "downsample": "short", "blocks": "encoder.layer", "mlp": "ff"}
OTHERS = {"conv1": "zz", "conv2": "aa", "bn1": "yy", "bn2": "bb", "downsample": "cc", "attn": "qq", "mlp": "oo"}
SMALL = {"width": 12, "depth": 2, "heads": 3, "patch": 4, "size": (8, 8)}


@pytest.fixture(scope="module")
def models():
    """Returns a ResNet and a ViT with random values, their outputs, and the images of these."""
    variant = dataclasses.replace(VARIANTS["vit_tiny_patch16_224"], **SMALL)
    images = numbers(2, 8, 8, 3)
    found = {}
    for name, build in {
        "resnet": lambda: ResNet((1, 2), width=8, stem=8, classes=5, bottleneck=False, rngs=nnx.Rngs(0)),
        "vit": lambda: VisionTransformer(variant, classes=7, rngs=nnx.Rngs(0)),
    }.items():
        module, draw = nnx.eval_shape(build), np.random.default_rng(0)
        fill(module, lambda x: draw.normal(size=x.shape) ** 2)  # noqa: B023
        module.eval()
        found[name] = module, np.asarray(nnx.jit(lambda m, x: m(x))(module, images)), images
    return found


def fill(module, value):
    """Sets the variables of a module."""
    state = nnx.state(module, (nnx.Param, nnx.BatchStat))
    nnx.update(module, jax.tree.map(lambda x: jnp.asarray(np.asarray(value(x), x.dtype)), state))


def empty(module):
    """Returns a copy of a module with other values."""
    copy = nnx.clone(module)
    fill(copy, lambda x: np.full(x.shape, 0.5))
    return copy


def renamed(module, folder, words, by_word):
    """Writes the weights of a module with other names, and returns the file."""
    hub.save(module, folder / "original.safetensors")

    def other(name):
        if by_word:
            return ".".join(words.get(word, word) for word in name.split("."))
        for old, new in words.items():
            name = name.replace(old, new)
        return name

    save_file(
        {other(name): x for name, x in load_file(folder / "original.safetensors").items()}, folder / "w.safetensors"
    )
    return str(folder / "w.safetensors")


@pytest.mark.parametrize(("words", "by_word"), [(RENAMED, False), (OTHERS, True)])
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_other_names_are_found_and_outputs_decide_the_rest(models, tmp_path, name, words, by_word):
    """In a ViT, two norms of a layer have one shape; all else follows from shapes and from names that go together."""
    module, output, images = models[name]
    source, file = renamed(module, tmp_path, words, by_word), tmp_path / "names_there.py"
    np.savez(tmp_path / "pair.npz", images=images, output=output)
    target = empty(module)
    summary, checked = propose_paths(target, "", open_weights(source), file, check=tmp_path / "pair.npz")
    count = len(values(module)) + len(nnx.to_flat_state(nnx.state(module, nnx.BatchStat)))
    assert summary.startswith(
        f"matched {count} of {count} arrays with {source}; wrote {file}\nrandom: none; unused: none"
    )
    assert checked.startswith("--check: the outputs agree")
    hub.load(target, source, read_paths(file, "--paths"))
    same(values(target), values(module))


def test_names_that_go_together_are_sure_without_outputs(models, tmp_path):
    module = models["resnet"][0]
    matches = propose(module, Weights(tmp_path / renamed(module, tmp_path, OTHERS, True), "x").arrays)
    assert [one.path for one in matches if one.others or one.entry is None] == []
    found = {one.path: one.entry for one in matches}
    assert found["stages/layer1/0/conv2/kernel"] == "layer1.0.aa.weight"
    assert found["stages/layer2/0/downsample/bn/var"] == "layer2.0.cc.1.running_var"


class Two(nnx.Module):
    """Two square layers, and one whose sizes differ."""

    def __init__(self):
        self.first = nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(1))
        self.last = nnx.Linear(3, 2, use_bias=False, rngs=nnx.Rngs(2))

    def __call__(self, x):
        return self.last(nnx.tanh(self.second(nnx.tanh(self.first(x)))))


@pytest.fixture
def squares(tmp_path):
    """Writes weights of Two as `[in, out]`, the first two in the reverse order of names, and a pair."""
    arrays = {"b": numbers(3, 3), "a": numbers(9, 1).reshape(3, 3), "c": numbers(3, 2)}
    save_file(arrays, tmp_path / "w.safetensors")
    x = numbers(5, 3)
    output = np.tanh(np.tanh(x @ arrays["b"]) @ arrays["a"]) @ arrays["c"]
    np.savez(tmp_path / "pair.npz", x=x, output=output)
    return str(tmp_path / "w.safetensors"), tmp_path


def test_squares_are_ambiguous_and_decided_by_outputs(squares):
    source, folder = squares
    (summary,) = propose_paths(Two(), "net", open_weights(source), folder / "p.py")
    assert "ambiguous: first/kernel: a: ab->ab, or a, b: ab->ab, b" in summary
    assert "AMBIGUOUS" in (folder / "p.py").read_text()
    assert list(read_paths(folder / "p.py", "x").values()) == ["a: ab->ab", "b: ab->ab", "c: ab->ab"]
    _, checked, wrote = propose_paths(
        Two(), "", open_weights(source), folder / "q.py", check=folder / "pair.npz", out=folder / "out.safetensors"
    )
    assert checked.startswith("--check: the outputs agree") and wrote.startswith("wrote 3 arrays")
    paths = {"^first/kernel$": "b: ab->ab", "^second/kernel$": "a: ab->ab", "^last/kernel$": "c: ab->ab"}
    assert read_paths(folder / "q.py", "x") == paths and "AMBIGUOUS" not in (folder / "q.py").read_text()


def test_wrong_mapping_is_caught(squares):
    source, folder = squares
    wrong = {"^first/kernel$": "b: ab->ab", "^second/kernel$": "a", "^last/kernel$": "c: ab->ab"}
    with pytest.raises(CheckpointError, match=r"--check: the outputs differ by"):
        list(import_weights(Two(), open_weights(source), wrong, check=folder / "pair.npz"))
    x = np.load(folder / "pair.npz")["x"]
    np.savez(folder / "other.npz", x=x, output=numbers(5, 2))  # no mapping gives this output
    lines = propose_paths(Two(), "", open_weights(source), folder / "p.py", check=folder / "other.npz")
    assert "ambiguous: " in next(lines) and (folder / "p.py").exists()
    with pytest.raises(CheckpointError, match=r"--check: the outputs differ by"):
        next(lines)
