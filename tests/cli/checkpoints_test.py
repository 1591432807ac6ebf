"""`convoy checkpoints` lists and verifies; tests of damaged checkpoints are in tests/api."""

import pytest

from engine.base.errors import ConfigError
from engine.cli.arguments import parse
from engine.cli.main import main


def test_checkpoints_are_listed_and_verified(digits, tmp_path, capsys):
    path, _ = digits
    assert main(["checkpoints", str(path)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in listed if line.startswith("step")] == ["2", "3"]
    assert "heldout/accuracy" in listed[-2]
    assert listed[-1].startswith("code: ")
    assert main(["checkpoints", "verify", str(path)]) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["good"] * 2
    assert main(["checkpoints", "verify", str(tmp_path)]) == 1
    with pytest.warns(FutureWarning, match=r"Use convoy export .* --out="):
        assert main(["checkpoints", str(path), f"--export={tmp_path / 'w.safetensors'}", "--no-card"]) == 0
    assert main(["checkpoints", str(path), "--no-card"]) == 1
    assert "concern the model card of an export" in capsys.readouterr().err


def test_checkpoints_accepts_verify_before_the_run():
    for words, action, run in [(["runs/x"], None, "runs/x"), (["verify", "runs/x"], "verify", "runs/x")]:
        args = parse(["checkpoints", *words])
        assert (args.action, args.run) == (action, run)
    assert parse(["checkpoints", "verify"]).run == "verify"
    with pytest.raises(ConfigError, match="invalid choice: 'verifi'"):
        parse(["checkpoints", "verifi", "runs/x"])


def test_overrides_are_refused(capsys):
    assert main(["checkpoints", "run", "--config.train.seed=1"]) == 1
    assert "convoy checkpoints reads the run's own config" in capsys.readouterr().err
