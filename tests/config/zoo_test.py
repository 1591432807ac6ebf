"""Dotted paths of the shipped models and configs, where a user's own folders hide them, and of earlier releases."""

import importlib.util
import sys

import pytest

from engine.config import zoo
from engine.config.draft import defaults
from engine.config.identity import identity_differences
from engine.config.loading import load
from engine.config.schema import Target
from engine.config.target import INSTANCE, resolve
from engine.config.text import from_text, to_text
from engine.config.validation import validate

OWN = """from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="models.vit.Vit")
    c.data = dict(target="models.digits.scans", inner=dict(target="models.decoder.Decoder"))
    return c
"""


@pytest.fixture
def own_folders(tmp_path, monkeypatch):
    """The current folder with `models/digits.py` and `configs/own.py`, first on sys.path as for the command line."""
    for name, text in {"models/digits.py": "", "configs/own.py": OWN, "configs/digits.py": OWN}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).with_name("__init__.py").write_text("")
    yield from shadow(tmp_path, monkeypatch)


@pytest.fixture
def empty_folders(tmp_path, monkeypatch):
    """Like own_folders, with an empty `models/` and an empty `configs/`."""
    for name in zoo.PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    yield from shadow(tmp_path, monkeypatch)


def shadow(folder, monkeypatch):
    """Lets the packages of `folder` hide those of the repository, until the end of the test."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    for name in imported():
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in imported():
        del sys.modules[name]


def imported() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] in zoo.PACKAGES]


def test_modules_are_those_of_the_zoo():
    assert {"digits", "vit", "decoder", "street"} <= set(zoo.modules("models"))
    assert "digits" in zoo.modules("configs") and "__init__" not in zoo.modules("configs")
    assert zoo.modules("nothing") == []


@pytest.mark.parametrize(
    "name", ["models.digits.Digits", "models.street.lidar.sweeps", "models.digits", "configs.digits"]
)
def test_short_name_of_the_zoo_becomes_the_full_name(name):
    assert zoo.canonical(name) == zoo.canonical(f"convoy_zoo.{name}") == f"convoy_zoo.{name}"


@pytest.mark.parametrize("name", ["models.own.Task", "models", "configs.own", "optax.adamw", "mymodels.digits", ""])
def test_names_outside_the_zoo_stay(name):
    assert zoo.canonical(name) == name


def test_module_of_the_user_keeps_the_short_name(own_folders):
    assert zoo.canonical("models.digits.Digits") == "models.digits.Digits"
    assert zoo.canonical("configs.digits") == "configs.digits"
    assert zoo.canonical("convoy_zoo.models.digits.Digits") == "convoy_zoo.models.digits.Digits"


def test_short_name_that_the_user_does_not_have_becomes_the_full_name(own_folders):
    assert zoo.canonical("models.vit.Vit") == "convoy_zoo.models.vit.Vit"
    assert zoo.canonical("models.street.lidar.sweeps") == "convoy_zoo.models.street.lidar.sweeps"
    assert zoo.canonical("configs.vit_fashion") == "convoy_zoo.configs.vit_fashion"


def test_config_of_the_zoo_names_the_models_of_the_zoo(own_folders):
    config = load("convoy_zoo.configs.digits")
    assert config.task.target == "convoy_zoo.models.digits.Digits"  # not models/digits.py of the user
    assert config.evaluations["heldout"].data.target == "convoy_zoo.models.digits.scans"
    assert config.optimizer.target == "optax.adamw"
    assert config.name == "digits"
    assert from_text(to_text(config), "") == config


def test_config_of_the_user_names_the_models_of_the_user_and_then_of_the_zoo(own_folders):
    config = load("configs.own")
    assert config.data.target == "models.digits.scans"
    assert config.task.target == "convoy_zoo.models.vit.Vit"
    assert config.data.arguments["inner"] == {"target": "convoy_zoo.models.decoder.Decoder"}


def test_short_reference_finds_the_zoo_next_to_empty_folders(empty_folders):
    config = load("configs.vit_fashion")  # it imports configs/fashion_mnist.py
    assert config.task.target == "convoy_zoo.models.vit.Vit"
    assert config.data.target == "convoy_zoo.models.fashion_mnist.ShiftedPhotographs"


def test_stored_config_with_short_names_equals_that_with_full_names():
    text = to_text(load("configs.digits"))
    earlier = text.replace("convoy_zoo.", "")
    assert "task.target: models.digits.Digits" in earlier.splitlines()
    assert to_text(from_text(earlier, "")) == text


def test_object_of_a_class_with_a_short_name_may_have_the_full_name_on_resume():
    def started(package):
        c = defaults()
        c.task = dict(target=INSTANCE, type=f"{package}.digits.Digits")
        c.data = dict(target=INSTANCE, type="models.own.Scans")
        return validate(c)

    assert identity_differences(started("models"), started("convoy_zoo.models")) == []
    assert identity_differences(started("models"), started("own")) == [
        "task.type: convoy_zoo.models.digits.Digits -> own.digits.Digits"
    ]


def test_config_file_in_a_package_may_import_relatively(own_folders, tmp_path):
    (tmp_path / "configs" / "derived.py").write_text("from . import own\n\nget_config = own.get_config\n")
    assert load("configs/derived.py").data.target == "models.digits.scans"


@pytest.mark.parametrize(("old", "new"), zoo.MOVED.items())
def test_old_module_is_gone_and_its_new_one_exists(old, new):
    assert importlib.util.find_spec(old) is None and importlib.util.find_spec(new) is not None


def test_old_path_resolves_to_the_class_of_today():
    old = Target(target="engine.data.array_record.ArrayRecordSource")
    with pytest.warns(
        FutureWarning, match=r"^data.target: 'engine.data.array_record.*Use 'engine.readers.array_record"
    ):
        found = resolve(old, "data")
    assert found is resolve(Target(target="engine.readers.ArrayRecordSource"), "data")


def test_stored_config_with_an_old_path_has_the_path_of_today():
    text = "task.target: x.Task\ndata.target: engine.Mixture\ndata.sources.a.target: engine.data.array_record.A\n"
    stored = to_text(from_text(text, "runs/a/config.txt")).splitlines()
    assert "data.sources.a.target: engine.readers.array_record.A" in stored


def test_other_paths_are_unchanged():
    for path in ("engine.Weighted", "models.digits.Digits", "engine.data.array_record", "engine"):
        assert zoo.current(path) == path


def test_old_and_new_path_are_the_same_identity_also_inside_a_mixture():
    def config(module):
        c = defaults()
        c.task = dict(target="x.Task")
        source = dict(target=f"{module}.ArrayRecordSource", pattern="a")
        c.data = dict(target="engine.Mixture", sources=dict(a=source), weights=dict(a=1.0))
        c.train.total = "1 step"
        return validate(c)

    old, new, other = map(config, ("engine.data.array_record", "engine.readers.array_record", "other"))
    assert identity_differences(old, new) == []
    assert len(identity_differences(old, other)) == 1
