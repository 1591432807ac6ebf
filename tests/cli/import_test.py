"""`convoy import`: the model of a config or of a dotted path, and mistakes."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from engine.cli.main import main

MODEL = """
from flax import nnx
from engine import Task

class Net(nnx.Module):
    def __init__(self, width, rngs):
        self.body = nnx.Linear(2, width, rngs=rngs)
        self.head = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.body(x))

class Job(Task):
    def build(self, rngs):
        return Net(4, rngs)
"""
CONFIG = """
from convoy_zoo.configs import digits

def get_config():
    c = digits.get_config()
    c.task = dict(target="net_to_import.Job")
    c.init = dict(checkpoint="hf:body.safetensors", paths={"head": None})
    return c
"""
BODY = {"body.weight": np.arange(8, dtype=np.float32).reshape(4, 2), "body.bias": np.ones(4, np.float32)}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "net_to_import.py").write_text(MODEL)
    (tmp_path / "config.py").write_text(CONFIG)
    save_file(BODY, "body.safetensors")
    return tmp_path


def test_paths_of_the_config_or_of_a_file_apply(capsys):
    assert main(["import", "body.safetensors", "--config=config.py", "--out=own.safetensors"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "initialized 2 arrays from body.safetensors; random: head/bias, head/kernel; unused: none",
        "wrote 2 arrays to own.safetensors: init.checkpoint='hf:own.safetensors'",
    ]
    found = load_file("own.safetensors")
    assert (
        sorted(found) == ["body/bias", "body/kernel"]
        and found["body/kernel"].tolist() == BODY["body.weight"].T.tolist()
    )
    with open("p.py", "w") as file:
        file.write('paths = {"kernel": "body.weight", "bias": "body.bias"}')
    words = ["import", "body.safetensors", "--model=net_to_import.Net", "--argument", "width=4", "--part=body"]
    assert main([*words, "--paths=p.py"]) == 0
    assert capsys.readouterr().out == "initialized 2 arrays from body.safetensors; random: none; unused: none\n"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "ConfigError: convoy import: which model? Give either --config=CONFIG or --model=DOTTED.PATH."),
        (["--config=config.py", "--argument=a=1"], "ConfigError: --argument a=1: belongs to --model."),
        (["--config=config.py", "--part=boddy"], "ConfigError: --part = boddy: no module 'boddy'. Modules there: body"),
        (["--model=net_to_import.Net", "--argument=width=4"], "CheckpointError: convoy import: body.safetensors do"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(words, error, capsys):
    assert main(["import", "body.safetensors", *words]) == 1
    assert capsys.readouterr().err.startswith(error)


def test_source_that_cannot_be_read_is_one_sentence_before_the_model_is_built(capsys):
    assert main(["import", "none.safetensors", "--model=no_such_module.Net"]) == 1
    assert capsys.readouterr().err.startswith("CheckpointError: SOURCE = hf:none.safetensors: no such file or folder.")
