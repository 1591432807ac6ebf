"""Import of weights: what is written is read as it was imported, and outputs are compared."""

import numpy as np
import pytest
from flax import nnx

from engine import hub
from engine.base.errors import CheckpointError
from engine.hub.importing import import_weights, open_weights
from tests.hub.subjects import Model, Net, expected, made, numbers, same, there, values, write


def test_written_weights_have_the_names_of_the_model(tmp_path):
    """Layers of a stack stay together, and no table applies to the file again; a part is mapped as before."""
    source, out = write(tmp_path, there()), tmp_path / "own.safetensors"
    *_, last = import_weights(made(Net), open_weights(str(source)), {}, out=out)
    assert last == f"wrote 8 arrays to {out}: init.checkpoint='hf:{out}'"
    net, model = made(Net), made(Model)
    assert hub.load(net, out) == f"initialized 8 arrays from {out}; random: none; unused: none"
    same(values(net), expected(there()))
    hub.load(model, out, {"backbone": "", "own": None})
    same(values(model.backbone), expected(there()))


def test_entries_of_paths_join_split_and_reorder(tmp_path):
    arrays = {"a": numbers(2, 4), "b": numbers(1, 4), "c": numbers(6, 4)}
    for given, wanted in {
        "a + b": np.concatenate([arrays["a"], arrays["b"]]).T,
        "c[1 of 2]": arrays["c"][3:].T,
    }.items():
        module = nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0))
        hub.load(module, write(tmp_path, arrays), {"^kernel$": given})
        same(values(module), {"kernel": wanted})
    module = nnx.Linear(2, 4, use_bias=False, rngs=nnx.Rngs(0))
    hub.load(module, write(tmp_path, arrays), {"^kernel$": "a: ab->ab"})
    same(values(module), {"kernel": arrays["a"]})


def test_outputs_are_compared_and_a_wrong_mapping_is_caught(tmp_path):
    arrays = {"a": numbers(3, 3), "b": numbers(9, 1).reshape(3, 3)}
    module, x = nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(0)), numbers(2, 3)
    np.savez(tmp_path / "pair.npz", inputs=x, output=x @ arrays["a"].T)
    source, check = open_weights(str(write(tmp_path, arrays))), tmp_path / "pair.npz"
    *_, last = import_weights(module, source, {"^kernel$": "a"}, check=check)
    assert last.startswith("--check: the outputs agree; largest difference ")
    for wrong in ("b", "a: ab->ab"):
        with pytest.raises(CheckpointError, match=r"--check: the outputs differ by .* allowed is 0.0001"):
            list(import_weights(module, source, {"^kernel$": wrong}, check=check, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
