"""`convoy checkpoints` lists, verifies and exports; tests of damaged checkpoints are in tests/api."""

import pytest

from engine.base.errors import ConfigError
from engine.cli.arguments import parse
from engine.cli.main import main


def test_checkpoints_are_listed_verified_and_exported(digits, tmp_path, capsys):
    path, _ = digits
    assert main(["checkpoints", str(path)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in listed if line.startswith("step")] == ["2", "3"]
    assert "heldout/accuracy" in listed[-2]
    assert listed[-1].startswith("code: ")
    assert main(["checkpoints", "verify", str(path)]) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["good"] * 2
    assert main(["checkpoints", "verify", str(tmp_path)]) == 1
    out = tmp_path / "weights.safetensors"
    assert main(["checkpoints", str(path), f"--export={out}", "--step=2"]) == 0
    assert capsys.readouterr().out.endswith(f" arrays to {out}\nmodel card: {out}.MODEL_CARD.md\n")
    assert out.stat().st_size > 4 * 26_122


def test_model_card_has_the_texts_of_the_team_and_may_be_left_out(digits, tmp_path, capsys):
    path, out, use = digits[0], tmp_path / "w.safetensors", tmp_path / "use.md"
    use.write_text("Digits on envelopes.\n")
    card = tmp_path / "w.safetensors.MODEL_CARD.md"
    words = ["checkpoints", str(path), f"--export={out}"]
    assert main([*words, "--no-card"]) == 0 and not card.exists()
    assert main([*words, f"--intended-use={use}"]) == 0
    first = card.read_text()
    assert "\nDigits on envelopes.\n" in first and "| heldout/accuracy |" not in first and "| accuracy |" in first
    assert main([*words, f"--intended-use={use}"]) == 0 and card.read_text() == first
    card.write_text("our own")
    out.unlink()
    assert main(words) == 1 and "was changed by hand" in capsys.readouterr().err
    card.unlink()
    assert main([*words, "--group=scene"]) == 1
    expected = "--group=scene: no stored evaluation of step 3 has such a tag. Tags: none."
    assert expected in capsys.readouterr().err
    assert not out.exists()  # nothing is exported without its card
    assert main([*words, "--no-card", "--limits=x"]) == 1
    assert main(["checkpoints", str(path), "--no-card"]) == 1
    assert capsys.readouterr().err.count("concern the model card of an export") == 2


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
