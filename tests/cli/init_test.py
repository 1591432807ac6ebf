"""`convoy init`: the question, and mistakes. tests/scaffold runs the projects."""

import io

import pytest

from engine.cli.main import main
from engine.scaffold.kinds import KINDS


class Terminal(io.StringIO):
    """A stream of a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize("answer", ["4", "table"])
def test_kind_is_asked_in_a_terminal(answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", Terminal(f"{answer}\n"))
    monkeypatch.setattr("sys.stderr", shown := Terminal())
    assert main(["init"]) == 0
    assert (tmp_path / "braking.csv").exists()
    assert all(kind.summary in shown.getvalue() for kind in KINDS.values())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "convoy init: which kind of data? Add --kind=KIND, one of images, scenes, text, table."),
        (["--kind=image"], "--kind = image: allowed are images, scenes, text, table. Did you mean images?"),
        (["--config.name=x"], "--config.name=x"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(words, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(["init", *words]) == 1
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
