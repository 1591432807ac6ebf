import sys

import pytest

from engine.base.errors import ConfigError
from engine.base.extras import install_command
from engine.config.draft import defaults
from engine.config.schema import Data, Optimizer, Target
from engine.config.target import build, check, is_found, resolve
from engine.config.validation import validate

TASKS = """
from typing import Any, Literal, Optional
import numpy as np

VALUE = 3

def scans(split: Literal["train", "test"] = "train", size: "int | None" = 3, mean: float | np.ndarray = 0.0,
          how: Literal[1, "all"] = 1, kind: Optional[Any] = None):
    return split

def later(when: "NotThere" = 1, split: "Literal['a']" = "a"):
    return split

class Digits:
    def __init__(self, width, depth: int = 2, rate: float = 0.1, name: str = None, **extra):
        self.settings = dict(width=width, depth=depth, rate=rate, name=name)

class Strict:
    def __init__(self, width: int = 64):
        self.width = width

    class Inner:
        pass

def optimizer(learning_rate, b1=0.9):
    return learning_rate, b1

def mixture(sources, weights=None):
    return sources

def lazy():
    import not_there_at_all

def scans_of_sklearn():
    raise ModuleNotFoundError("the scans are a file of it", name="sklearn")

def by_hand():
    raise ImportError("Install the driver of the camera first.")

def wrong_name():
    from shop.tasks import Digit
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `shop` with a module of targets, a module that fails to import and one with a syntax error."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "tasks.py").write_text(TASKS)
    (folder / "broken.py").write_text("\nimport not_there_at_all\n")
    (folder / "misspelt.py").write_text("import shop.taks\n")
    (folder / "renamed.py").write_text("from shop.tasks import Digit\n")
    (folder / "typo.py").write_text("x = = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "shop"
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


def fails(target, sentence, function=resolve, **kwargs):
    with pytest.raises(ConfigError) as error:
        function(target, "task", **kwargs)
    assert sentence in str(error.value), str(error.value)


def test_resolve_imports_a_dotted_path(package):
    assert resolve(Target(target="shop.tasks.Digits"), "task").__name__ == "Digits"
    assert resolve(Target(target="shop.tasks.Strict.Inner"), "task").__name__ == "Inner"


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("", "task.target: is empty. Name a class or function by dotted path"),
        (
            "shopp.tasks.Digits",
            "task.target: found 'shopp.tasks.Digits', but there is no module 'shopp' to import. Run from",
        ),
        ("shopp.tasks.Digits", "Did you mean shop?"),
        (
            "shop.task.Digits",
            "but shop has no 'task'. Package shop was found. Did you mean tasks? It has: broken, misspelt, renam",
        ),
        ("shop.tasks.Digit", "but shop.tasks has no 'Digit'. Module shop.tasks was found. Did you mean Digits?"),
        (
            "shop.tasks.Strict.Iner",
            "but shop.tasks.Strict has no 'Iner'. Type shop.tasks.Strict was found. Did you mean Inner?",
        ),
        ("shop.tasks.VALUE", "task.target: 'shop.tasks.VALUE' is a value (3). Name a class or a function."),
        ("shop.broken.X", "task.target: shop.broken.X needs the module 'not_there_at_all', which is not installed ("),
        ("shop.broken.X", "broken.py:2). Install the package that provides it, or correct the import."),
        ("shop.misspelt.X", "shop.misspelt.X imports 'shop.taks', which does not exist ("),
        ("shop.misspelt.X", "misspelt.py:1). Correct the import. The package 'shop' was found."),
        ("shop.renamed.X", "an import of shop.renamed.X failed ("),
        ("shop.renamed.X", "renamed.py:1): cannot import name 'Digit' from 'shop.tasks'"),
        ("shop.typo.X", "importing shop.typo failed: SyntaxError: invalid syntax ("),
        ("shop.typo.X", "typo.py:1)"),
    ],
)
def test_resolve_error_names_the_failing_part_of_the_path(package, path, sentence):
    fails(Target(target=path), sentence)


def test_arguments_are_checked_against_the_signature(package):
    fails(
        Data(target="shop.tasks.Strict", arguments={"widht": 1}),
        "task.widht: shop.tasks.Strict takes no such argument. It takes: width. Fields of the engine here: shuffle, "
        "shuffle_window, limit, threads, workers, prefetch, on_error, on_change, weights_from. Did you mean width?",
        check,
    )
    fails(
        Data(target="shop.tasks.Strict", arguments={"shufle": False}), "Did you mean shuffle or shuffle_window?", check
    )
    fails(Optimizer(arguments={"lr": 0.1}), "Did you mean learning_rate?", check)
    fails(
        Optimizer(arguments={"weight_decay": "0.1x"}),
        "task.weight_decay: found '0.1x', optax.adamw takes a number or a function. Change it in the config.",
        check,
    )
    fails(Target(target="shop.tasks.Strict.Inner", arguments={"x": 1}), "It takes no arguments.", check)
    fails(
        Target(target="shop.tasks.Digits"),
        "task.width: is missing, shop.tasks.Digits needs it. Set it with --config.task.width=VALUE. "
        "It takes: width, depth=2",
        check,
    )
    check(Target(target="shop.tasks.Digits", arguments={"width": 1, "anything": 2}), "task")  # it takes **extra


def test_arguments_are_checked_against_plain_annotations(package):
    def digits(**arguments):
        return Target(target="shop.tasks.Digits", arguments={"width": 1, **arguments})

    fails(digits(depth=2.5), "task.depth: found 2.5, shop.tasks.Digits takes an integer.", check)
    fails(digits(depth=True), "task.depth: found True, shop.tasks.Digits takes an integer.", check)
    fails(digits(rate="fast"), "task.rate: found 'fast', shop.tasks.Digits takes a number.", check)
    fails(digits(rate=None), "task.rate: found None, shop.tasks.Digits takes a number.", check)
    check(digits(depth=3, rate=1, name=None), "task")


def test_arguments_are_checked_against_unions_and_literals(package):
    def scans(**arguments):
        return Target(target="shop.tasks.scans", arguments=arguments)

    fails(
        scans(split="tests"),
        "task.split: found 'tests', shop.tasks.scans takes 'train' or 'test'. Change it in the config. "
        "Did you mean test?",
        check,
    )
    fails(scans(size="big"), "task.size: found 'big', shop.tasks.scans takes an integer or None.", check)
    fails(scans(mean="none"), "task.mean: found 'none', shop.tasks.scans takes a number.", check)
    fails(scans(how=True), "task.how: found True, shop.tasks.scans takes 1 or 'all'.", check)
    fails(
        Target(target="optax.adamw", arguments={"b2": "high"}),
        "optax.adamw takes a number.",
        check,
        given=["learning_rate"],
    )
    check(scans(split="test", size=None, mean=(0.5, 0.5), how="all", kind="any"), "task")
    check(Target(target="shop.tasks.later", arguments={"when": "x", "split": "b"}), "task")  # names of checkers only


def test_misspelt_target_is_suggested():
    with pytest.raises(ConfigError, match=r"^optimizer.taret: optax.adamw takes no such .* Did you mean target\?$"):
        check(Optimizer(arguments={"taret": "optax.sgd"}), "optimizer", given=("learning_rate",))


def test_python_modules_are_not_suggested_for_a_missing_module():
    with pytest.raises(ConfigError, match=r"no module 'teacher' to import\. .*or install the package\.$"):
        resolve(Target(target="teacher.Digits"), "task")  # not "Did you mean trace?"


def test_arguments_passed_by_the_engine_cannot_be_set(package):
    target = Target(target="shop.tasks.optimizer", arguments={"b1": 0.8})
    check(target, "optimizer", given=("learning_rate",))
    assert build(target, "optimizer", learning_rate=3) == (3, 0.8)
    fails(target, "task.learning_rate: is missing", check)
    twice = Target(target="shop.tasks.optimizer", arguments={"learning_rate": 1})
    fails(
        twice,
        "task.learning_rate: is passed to shop.tasks.optimizer by the engine. Remove",
        check,
        given=["learning_rate"],
    )


def test_build_copies_containers(package):
    c = defaults()
    c.task = dict(target="shop.tasks.Digits", width=dict(a=[1, dict(b=2)]))
    c.data = dict(target="shop.tasks.Strict")
    config = validate(c)
    width = build(config.task, "task").settings["width"]
    assert width == {"a": (1, {"b": 2})} and type(width) is dict
    width["a"] = None
    assert build(config.task, "task").settings["width"]["a"] == (1, {"b": 2})


def nested(**sources):
    c = defaults()
    c.task = dict(target="shop.tasks.Strict")
    c.data = dict(target="shop.tasks.mixture", sources=sources, weights={"a": 1})
    return validate(c).data


def test_nested_targets_are_built_first(package):
    inner = dict(target="shop.tasks.mixture", sources=[dict(target="shop.tasks.Strict", width=3), 4])
    found = build(nested(a=dict(target="shop.tasks.Strict"), b=inner, c=dict(width=5)), "data")
    assert found["a"].width == 64
    assert found["b"][0].width == 3
    assert found["b"][1] == 4
    assert found["c"] == {"width": 5}


@pytest.mark.parametrize(
    ("inner", "sentence"),
    [
        (
            dict(target="shop.tasks.Stict"),
            "data.sources.a.target: found 'shop.tasks.Stict', but shop.tasks has no 'Stic",
        ),
        (dict(target=""), "data.sources.a.target: is empty."),
        (
            dict(target="shop.tasks.Strict", widht=3),
            "data.sources.a.widht: shop.tasks.Strict takes no such argument. It takes: width. Did you mean width?",
        ),
        (
            dict(target="shop.tasks.Strict", width="w"),
            "data.sources.a.width: found 'w', shop.tasks.Strict takes an int",
        ),
        (
            dict(target="shop.tasks.Digits"),
            "data.sources.a.width: is missing, shop.tasks.Digits needs it. Set it with --",
        ),
        (
            dict(target="shop.tasks.mixture", sources=[1, dict(target="shop.tasks.Strict", depth=1)]),
            "data.sources.a.sources.1.depth: shop.tasks.Strict takes no such argument",
        ),
    ],
)
def test_wrong_nested_target_is_named_before_anything_is_built(package, inner, sentence):
    section = nested(a=inner)
    for function in (check, build):
        with pytest.raises(ConfigError) as error:
            function(section, "data")
        assert sentence in str(error.value), str(error.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("lazy", "task.target: shop.tasks.lazy needs the module 'not_there_at_all', which is not installed ("),
        ("lazy", "tasks.py:32). Install the package that provides it, or correct the import."),
        ("by_hand", "task.target: shop.tasks.by_hand cannot be used ("),
        ("by_hand", "tasks.py:38). Install the driver of the camera first."),
        ("wrong_name", "an import of shop.tasks.wrong_name failed ("),
        ("wrong_name", "Correct the import, or install a version of the package that it works with."),
    ],
)
def test_import_error_of_a_call_is_one_sentence(package, name, sentence):
    fails(Target(target=f"shop.tasks.{name}"), sentence, build)


def test_missing_module_of_an_extra_names_the_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as if it were not installed
    sentence = f"It comes with the extra 'examples': {install_command('examples')}."
    fails(Target(target="shop.tasks.scans_of_sklearn"), sentence, build)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("optax.adamw", True),
        ("engine.config.schema.Target", True),
        ("engine.confg.schema.Target", False),
        ("no_such_package.Task", False),
        ("no_such_package.module.Task", False),
        ("dataclasses.dataclass", True),
        ("dataclasses.Field.name", True),
        ("math.nothing.there", True),  # `resolve` names the missing part
    ],
)
def test_is_found_says_whether_the_module_of_a_target_exists(path, found):
    assert is_found(path) is found
