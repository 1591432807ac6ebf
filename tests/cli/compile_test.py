"""The arguments of `convoy compile`; tests of what it compiles are in tests/api/compile_test.py."""

import pytest

from engine.cli.main import main


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--config=configs.digits", "--hardware=v5e:4x4"], "--hardware=v5e:4x4: where are the programs to be"),
        (["--hardware=v5e:4x4"], "convoy compile: the following arguments are required: --config"),
        (["--config=configs.digit"], "Did you mean configs.digits"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_sentence(words, text, capsys):
    assert main(["compile", *words]) == 1
    assert text in capsys.readouterr().err
