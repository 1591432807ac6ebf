import pytest

from engine.base.errors import ConfigError
from engine.sweeps import log
from engine.sweeps.space_file import load_domains

GOOD = "from engine.sweeps import log\n\n\ndef get_space():\n    return {'a.b': log(1, 2)}\n"


def test_space_is_loaded_from_a_file_and_from_a_module(tmp_path, monkeypatch):
    (tmp_path / "my_search_space.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert load_domains("my_search_space.py") == load_domains("my_search_space") == {"a.b": log(1, 2)}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (GOOD.replace("get_space", "get_spaces"), "defines no get_space(). Did you mean get_spaces? It returns a dict"),
        (GOOD.replace("(1, 2)", "(2, 1)"), ", line 5: log(2, 1): low must be less than high."),
        (GOOD.replace("(1, 2)", "(1, 2"), ": line 5: "),
        (GOOD.replace("log(1, 2)", "1 / 0"), ", line 5: ZeroDivisionError: division by zero. Correct it there."),
        (GOOD.replace("{'a.b': log(1, 2)}", "[1]"), "get_space() returned [1]. It returns a dict: setting -> domain"),
    ],
)
def test_mistakes_in_a_file_are_refused_with_their_line(tmp_path, monkeypatch, text, problem):
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "space.py").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_domains(str(tmp_path / "space.py"))
    assert str(error.value).startswith(f"--space={tmp_path / 'space.py'}") and problem in str(error.value)


def test_missing_file_or_module_is_refused(tmp_path):
    (tmp_path / "space.py").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"there is no such file. Did you mean space.py\?"):
        load_domains(str(tmp_path / "spaec.py"))
    with pytest.raises(ConfigError, match="No module named 'no_such_space'"):
        load_domains("no_such_space")
