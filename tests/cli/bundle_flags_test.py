"""`convoy export --format=stablehlo` writes a bundle, and says what is wrong with its flags."""

import pytest

from engine.bundles.bundle import Bundle
from engine.cli.main import main


def test_bundle_is_written_with_the_sizes_of_the_flags(digits, tmp_path, capsys):
    out = tmp_path / "digits.zip"
    words = ["export", str(digits[0]), "--format=stablehlo", f"--out={out}", "--step=2", "--platforms=cpu,tpu"]
    assert main([*words, "--shape=image:rows, 8, 8", "--weights=inside", "--evaluations.heldout.data.limit=3"]) == 0
    assert capsys.readouterr().out == f"wrote bundle {out}: predict\n"
    found = Bundle(out)
    found.check_files()
    entry = found.entry("predict")
    assert str(entry.inputs["image"]) == "float32[rows, 8, 8]" and found.manifest["run"]["step"] == 2
    assert (
        entry.programs["stablehlo"]["platforms"] == ["cpu", "tpu"]
        and "weights.safetensors" not in found.manifest["files"]
    )


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (
            ["--format=tflite"],
            "--format=tflite: allowed are safetensors, hf, stablehlo, onnx, and stablehlo,onnx for both",
        ),
        (["--format=stablehlo", "--batch=two"], "--batch=two: allowed is a number from 1, or any"),
        (["--format=stablehlo", "--shape=image"], "--shape=image: found no sizes. Write NAME:SIZE,SIZE"),
        (["--format=stablehlo", "--part=head"], "--part: concerns --format=hf"),
        (["--format=stablehlo", "--no-card"], "concern the model card"),
        (["--format=stablehlo", "--sign=none"], "--sign=none: cannot be read"),
        (["--format=stablehlo", "--keep=head"], "--keep: concerns --quantize=SCHEME"),
        (["--format=stablehlo", "--quantize=int7"], "quantize = 'int7': unknown. Did you mean int8?"),
        (["--max-drop=a:1"], "--max-drop: concerns a bundle"),
        (["--batch=3"], "--batch: concerns a bundle. Add --format=stablehlo"),
        (["--format=hf", "--sign=key"], "--sign: concerns a bundle"),
    ],
)
def test_wrong_flags_are_named_and_nothing_is_written(digits, tmp_path, capsys, flags, problem):
    assert main(["export", str(digits[0]), f"--out={tmp_path / 'out'}", *flags]) == 1
    assert problem in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
