"""`convoy export` writes the weights of a run with the names of its model, or with those of another program."""

import json

import numpy as np
from safetensors.numpy import load_file

import engine
from engine.cli.main import main
from engine.hub.matching import variables_of
from tests import runs, zoo


def test_weights_are_written_with_a_model_card(digits, tmp_path, capsys):
    path, out = digits[0], tmp_path / "weights.safetensors"
    assert main(["export", str(path), f"--out={out}", "--step=2"]) == 0
    assert capsys.readouterr().out.endswith(f" arrays to {out}\nmodel card: {out}.MODEL_CARD.md\n")
    assert out.stat().st_size > 4 * 26_122


def test_model_card_has_the_texts_of_the_team_and_may_be_left_out(digits, tmp_path, capsys):
    path, out, use = digits[0], tmp_path / "w.safetensors", tmp_path / "use.md"
    use.write_text("Digits on envelopes.\n")
    card = tmp_path / "w.safetensors.MODEL_CARD.md"
    words = ["export", str(path), f"--out={out}"]
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
    assert "concern the model card of an export" in capsys.readouterr().err


class Described(zoo.Classify):
    """A Task that another program reads."""

    def config_json(self):
        return json.dumps({"classes": 4})


def test_other_program_gets_its_names_of_the_model_or_of_a_part(digits, tmp_path, capsys):
    run, own, folder = str(digits[0]), tmp_path / "own.safetensors", tmp_path / "folder"
    assert main(["export", run, f"--out={own}", "--no-card"]) == 0
    assert main(["export", run, "--format=hf", f"--out={folder}", f"--limits={__file__}"]) == 0
    names = {f"model.safetensors{end}" for end in ("", ".MODEL_CARD.md", ".lineage.json")}
    assert {path.name for path in folder.iterdir()} == names
    here, there = load_file(own), load_file(folder / "model.safetensors")
    np.testing.assert_array_equal(there["hidden.0.weight"], here["hidden/0/kernel"].T)
    assert len(there) == len(here)
    part = tmp_path / "part.safetensors"
    assert main(["export", run, "--format=hf", "--part=head", f"--out={part}", "--no-card"]) == 0
    assert load_file(part).keys() == {"weight", "bias"}
    capsys.readouterr()
    assert main(["export", run, "--format=hf", "--part=tail", f"--out={part}"]) == 1
    assert "--part = tail: no module 'tail'. Modules there: " in capsys.readouterr().err
    assert main(["export", run, "--format=hf", f"--out={__file__}", "--no-card"]) == 1
    assert f"CheckpointError: --out = {__file__}: no folder can be made there (File exists)." in capsys.readouterr().err
    assert main(["export", run, "--part=head", f"--out={part}"]) == 1
    assert "--part: concerns --format=hf" in capsys.readouterr().err


def test_adapters_are_merged_and_a_config_is_written(tmp_path):
    run, folder = tmp_path / "run", tmp_path / "folder"
    task = dict(target="engine.adapters.adapted", task=dict(target=f"{__name__}.Described"), match="kernel", rank=2)
    engine.train(runs.config(task=task, train__total="2 steps", evaluations={}), workdir=run)
    assert main(["export", str(run), "--format=hf", f"--out={folder}", "--no-card"]) == 0
    assert json.loads((folder / "config.json").read_text()) == {"classes": 4}
    model = engine.load(run).model
    wanted = {name: np.asarray(x.get_value()) for name, x in variables_of(engine.adapters.merged(model)).items()}
    base = {name: np.asarray(x.get_value()) for name, x in variables_of(model).items()}
    found = load_file(folder / "model.safetensors")
    kernels = [name for name in wanted if name.endswith("kernel")]
    assert kernels and len(found) == len(wanted)
    for name in kernels:
        there = found[name.removesuffix("kernel").replace("/", ".") + "weight"].T
        np.testing.assert_array_equal(there, wanted[name])
        assert (there != base[name]).any()
