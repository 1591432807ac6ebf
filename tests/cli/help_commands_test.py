"""Every command that a help text shows works as printed, on one small run."""

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from convoy_zoo.models.digits import Classifier
from engine import hub
from engine.cli.arguments import make_parser
from engine.cli.common import Parser
from engine.cli.main import main
from tests import runs

pytestmark = pytest.mark.slow

TINY = (
    *("--config.train.total=3 steps", "--config.checkpoint.every=2 steps", "--config.optimizer.warmup=0 steps"),
    *("--config.data.limit=32", "--config.train.global_batch_size=32", "--config.evaluations.heldout.data.limit=32"),
)
GATE = '[rules.accuracy]\nmetric = "heldout/accuracy"\nat_least = 0\n'
SPACE = "from engine.sweeps import choice\n\n\ndef get_space():\n    return {'task.width': choice(8, 16)}\n"
ALONE = ("explain", "launch local", "supervise", "sweep --config")  # choose the devices, or start processes


def helps() -> Iterator[str]:
    """Yields the help of the command line, of each verb, and of each action of a verb."""
    top, verbs = make_parser(None)
    yield top.format_help()
    for parser in verbs.values():
        yield parser.format_help()
        choices = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
        yield from (below.format_help() for found in choices for below in found.values() if isinstance(below, Parser))


def commands() -> list[str]:
    """Returns the commands in the order of their first appearance; `train`, which makes the run, is the first."""
    lines = [line.strip() for text in helps() for line in text.splitlines() if line.startswith("  convoy ")]
    return list(dict.fromkeys(line.partition("  ")[0] for line in lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the commands run one after the other."""
    found = tmp_path_factory.mktemp("help")
    for name in ("a.toml", "b.toml"):
        (found / name).write_text(GATE)
    (found / "space.py").write_text(SPACE)
    model, images = Classifier(128, nnx.Rngs(0)), np.zeros((2, 8, 8), np.float32)
    hub.save(model, found / "weights.safetensors")
    np.savez(found / "pair.npz", image=images, output=model(images))
    return found


def test_help_texts_have_commands_of_most_verbs():
    assert commands()[0] == "convoy train --config=configs.digits"
    assert len({command.split()[1] for command in commands()}) == len(make_parser([])[1])


@pytest.mark.multiprocess
@pytest.mark.parametrize("command", commands())
def test_command_of_a_help_text_works(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words = shlex.split(command)[1:]
    if words[0] == "tune":
        words += ["--steps=60", "--repeats=1"] if words[1] == "lr" else ["--steps=4", "--points=1", "--batches=4"]
    elif "--config=configs.digits" in words:
        words += TINY
    if words[0] == "data":
        words.insert(2, "--processes=1")
    if words[:2] == ["sweep", "--config=configs.digits"]:
        words.append("--trials=1")
    if not (folder / "runs/digits/config.txt").exists() and ("runs/digits" in command or words[0] == "bench"):
        assert main(["train", "--config=configs.digits", *TINY]) == 0  # the test of one command alone
    if words[0] == "bench":
        words += ["--calls=5", "--warmup=1"]
        if not Path(words[1]).exists():  # the test of one command alone
            assert main(["export", "runs/digits", "--format=stablehlo", f"--out={words[1]}"]) == 0
    for name in re.findall(r"\bruns/([ab](?:-\d)?|wide)(?= |$)", command):  # runs beside each other
        if not (folder / "runs/digits/config.txt").exists():
            assert main(["train", "--config=configs.digits", *TINY]) == 0
        shutil.copytree(folder / "runs/digits", folder / "runs" / name, dirs_exist_ok=True)
    if command.startswith(tuple(f"convoy {name}" for name in ALONE)) and "--help" not in words:
        done = runs.convoy(*words, cwd=folder, PYTHONPATH=os.fspath(Path(__file__).parents[2]))
        code, said = done.returncode, done.stdout + done.stderr
    else:
        code, said = main(words), "".join(capsys.readouterr())
    if code == 1 and ("--compile=" in command or "--hardware=v5e:4x4 --out" in command):
        assert "Install the extra aot" in said  # its help says that it needs this extra
    elif "tune batch --run=" in command:
        assert code == 1 and "32 is more than half of the 32 examples" in said  # so have its gradients no noise
    elif "--group=scene" in command:
        assert code == 1 and "--group=scene: no evaluation has this tag" in said  # digits have no scenes
    else:
        assert code == 0 and "Error" not in said, said
