import os
import sys

import pytest

from engine.base.duration import Duration
from engine.base.errors import ConfigError
from engine.config.loading import load
from engine.config.text import to_text

GOOD = """from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.digits.Digits", width=64)
    c.data = dict(target="convoy_zoo.models.digits.scans")
    return c
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The current directory, a folder with `recipes/digits.py`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "__init__.py").write_text("")
    (tmp_path / "recipes" / "digits.py").write_text(GOOD)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "recipes"]:
        del sys.modules[name]


def write(project, body, name="bad.py"):
    """Writes a config whose get_config has `body`, from line 4 on."""
    head = "from engine.config import defaults\ndef get_config():\n    c = defaults()\n"
    (project / "recipes" / name).write_text(head + "".join(f"    {line}\n" for line in body))


def message(reference, *overrides):
    with pytest.raises(ConfigError) as error:
        load(reference, overrides)
    assert error.value.kind == "ConfigError"
    return str(error.value)


@pytest.mark.parametrize("reference", ["recipes/digits.py", "./recipes/digits.py", "recipes.digits"])
def test_load_accepts_a_file_or_a_module_and_names_the_config_after_it(project, reference):
    config = load(reference, ["train.total=2 epochs", "task.width=8"])
    assert (
        config.name == "digits"
        and config.train.total == Duration(2, "epochs")
        and config.task.arguments == {"width": 8}
    )


def test_load_accepts_a_run_directory(project):
    run = project / "runs" / "digits"
    run.mkdir(parents=True)
    original = load("recipes/digits.py")
    (run / "config.txt").write_text(to_text(original))
    assert load("runs/digits") == load("runs/digits/config.txt") == original
    assert load("runs/digits", ["train.seed=3"]).train.seed == 3


def test_resume_shows_progress_although_the_run_was_started_without(project):
    silent = load("recipes/digits.py", ["log.progress=none"])
    (project / "config.txt").write_text(to_text(silent))
    assert silent.log.progress == "none" and load("config.txt").log.progress == "auto"
    assert load("config.txt", ["log.progress=lines"]).log.progress == "lines"


def test_configs_can_import_each_other(project):
    write(project, ["return c"], "helper.py")
    (project / "recipes" / "derived.py").write_text(
        "from recipes import digits\n"
        "def get_config():\n    c = digits.get_config()\n    c.task.width = 8\n    return c\n"
    )
    assert load("recipes/derived.py").task.arguments == {"width": 8}


def test_file_is_read_again_at_each_load(project):
    load("recipes/digits.py")
    (project / "recipes" / "digits.py").write_text(GOOD.replace("64", "32"))
    assert load("recipes/digits.py").task.arguments == {"width": 32}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (["c.train.totl = 3"], "train.totl: unknown field (recipes/bad.py:4). Did you mean train.total?"),
        (["", "c.train.seed = c.train.sed"], "train.sed: unknown field (recipes/bad.py:5). Did you mean train.seed?"),
        (
            ["c.train.total = 3"],
            "train.total: found 3 (an integer), allowed is a duration (recipes/bad.py:4). Write the unit",
        ),
        (["", "c.train.seed = None"], "train.seed: found None, allowed is an integer (recipes/bad.py:5)."),
        (["c.evaluations.x = dict(evry=1)"], "evaluations.x.evry: unknown field (recipes/bad.py:4). Did you mean eval"),
        (["c.train.seed = sed"], "recipes/bad.py:4: NameError: name 'sed' is not defined. The file is run as "),
        (["c.train.seed = = 1"], "recipes/bad.py:4: invalid syntax: c.train.seed = = 1"),
        (["import not_there_at_all"], "recipes/bad.py:4: ModuleNotFoundError: No module named 'not_there_at_all'."),
        (["pass"], "recipes/bad.py: get_config() returned None, which is no config. Add 'return c' at its end."),
        (["return 3"], "recipes/bad.py: get_config() returned 3, which is no config. Return what defaults() gave."),
        (["return c"], "task.target: is empty (recipes/bad.py). Name a class or function by dotted path"),
        (["return {'train': {'totl': 1}}"], "train.totl: unknown field (recipes/bad.py). Did you mean train.total?"),
    ],
)
@pytest.mark.parametrize("reference", ["recipes/bad.py", "recipes.bad"])
def test_error_in_a_config_names_its_line(project, reference, body, sentence):
    write(project, body)
    expected = sentence if reference.endswith(".py") else sentence.replace("recipes/bad.py: ", "recipes.bad: ")
    expected = expected if reference.endswith(".py") else expected.replace("(recipes/bad.py)", "(recipes.bad)")
    assert expected in message(reference)


def test_error_names_the_file_that_contains_it(project):
    write(project, ["c.train.totl = 1"], "base.py")
    (project / "recipes" / "derived.py").write_text("from recipes import base\nget_config = base.get_config\n")
    assert "train.totl: unknown field (recipes/base.py:4)" in message("recipes/derived.py")


def test_config_file_must_define_get_config(project):
    (project / "recipes" / "bad.py").write_text("def get_confg():\n    pass\n")
    assert message("recipes/bad.py") == (
        "recipes/bad.py: defines no get_config(). A config file has one, which returns the config. "
        "Did you mean get_confg?"
    )


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        (
            "recipes/digts.py",
            "recipes/digts.py: there is no such file. Did you mean recipes/digits.py? Configs in recipes: digits.py.",
        ),
        ("recipes/digits", "recipes/digits: there is no such file. Did you mean recipes/digits.py?"),
        ("nowhere/digits.py", "nowhere/digits.py: there is no such file. The folder nowhere does not exist either."),
        (
            "recipes.digts",
            "recipes.digts: there is no module 'recipes.digts' and no file of this name. Did you mean recipes.digits?",
        ),
        ("recipe.digits", "recipe.digits: there is no module 'recipe' and no file of this name. Did you mean recipes?"),
        ("digits.py", "digits.py: there is no such file. There are no configs in this folder."),
        ("recipes", "recipes: is a folder without config.txt, so no run. Configs in recipes: digits.py."),
        ("notes.md", "notes.md: is no config. Name a Python file (.py), a module or a run directory."),
    ],
)
def test_unknown_reference_suggests_existing_configs(project, reference, sentence):
    (project / "notes.md").write_text("")
    assert message(reference).startswith(sentence)


def test_override_errors_quote_the_override_as_typed(project):
    assert "(--config.train.totl=3)" in message("recipes/digits.py", "train.totl=3")
    together = message("recipes/digits.py", "train.accumulate=3")
    assert "train.global_batch_size = 128 (recipes/digits.py and the command line). Near divisors" in together


def test_modules_next_to_a_config_can_be_imported(project):
    elsewhere = project / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "alone.py").write_text(GOOD)
    load("elsewhere/alone.py")
    assert str(elsewhere) in sys.path and os.getcwd() in sys.path
    assert sys.path.index(str(elsewhere)) >= len(sys.path) - 2  # last, so that the folder of a config shadows no module


def test_bare_name_of_a_shipped_config_is_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"Did you mean configs\.digits"):
        load("digits")


def test_link_to_itself_is_a_file_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.py").symlink_to("loop.py")
    (tmp_path / "loop").symlink_to("loop")
    for reference in ("loop.py", "loop/x.py", "loop"):
        with pytest.raises(ConfigError, match=r"^loop.*: there is no "):
            load(reference)
