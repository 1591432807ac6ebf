"""Checks the imports of every file, including those inside functions, against the levels of the architecture.

A package may import itself and packages on lower levels. Bazel declares the same edges (engine/levels.bzl).
"""

import ast
import functools
import importlib.metadata
import importlib.util
import itertools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import engine
import engine.config
import engine.hub
import engine.layers
import engine.metrics
import engine.optimizers
import engine.perception
import engine.readers
from tests.levels import TOP, levels

LEVELS = levels()
PRIVATE_NAMES = (("engine", "__version__"), ("engine", "lazy_exports"))  # names of engine that its packages use
LAZY = {
    "engine",
    *(f"engine.{package}" for package in ("config", "hub", "layers", "metrics", "perception", "readers")),
}  # packages with lazy exports

# Names of this repository that packages outside the engine may import. None: any name of it.
OUTSIDE = {
    "models": {
        "engine": set(engine.__all__),
        "engine.augmentation": None,
        "engine.hub": {"", *engine.hub.__all__},
        "engine.layers": None,
        "engine.metrics": {"", *engine.metrics.__all__},
        "engine.perception": {"", *engine.perception.__all__},
        "engine.plot": None,
        "engine.readers": {"", *engine.readers.__all__},
    },
    "configs": {"engine.config": None},
}
CONFIGS_USE = {"ml_collections"}  # in addition to the standard library

PACKAGES_WITHOUT_JAX = (
    "augmentation",
    "base",
    "config",
    "storage",
    "cluster",
)  # importing them loads no JAX
LIBRARIES = ("jax", "flax", "orbax", "grain")  # libraries whose private names must not be used
# Types only; check.py next to measure.py in a bundle; what comes with jax; files that end in .zst, with a sentence if
# it is missing.
UNDECLARED = {"_typeshed", "check", "ml_dtypes", "zstandard"}
PRIVATE = {"engine/cluster/kv_store.py": 1}  # except here: JAX's distributed client has no public name
# Files with threads that end no process: the fallback of `RunThread` itself, calls whose errors are raised where they
# are awaited, a program whose end is noticed otherwise, a message, and output, which is no condition of training.
OTHER_THREADS = {
    "engine/cluster/output.py",
    "engine/cluster/output_queue.py",
    "engine/cluster/shutdown.py",
    "engine/loop/start.py",
    "engine/storage/background.py",
    "engine/storage/mounts.py",
}
LONGEST = 400  # maximum number of lines in a file

# Numbers of the engine that may only fall: lower a limit when a change allows it. The aims are 8, 3 and 30.
MANY_PARAMETERS, LONG_FUNCTION = 8, 60  # parameters without self and cls; lines
MOST_WITH_MANY_PARAMETERS = 11
MOST_LONG_FUNCTIONS = 1
MOST_PYRIGHT_IGNORES = 25

FILES = sorted(
    path.relative_to(TOP).as_posix()
    for folder in ("engine", "models", "configs")
    for path in TOP.glob(f"{folder}/**/*.py")
)


def package_of(module: str) -> str:
    """Returns the package of a module of the engine, such as "data"; "" for the engine itself."""
    return module.partition(".")[2].partition(".")[0]


def module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@functools.cache
def is_module(name: str) -> bool:
    path = TOP / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Yields (line, module, name in it or "") of every import of a file; a submodule counts as the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "." * node.level + (node.module or ""), ""
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (node.lineno, inner, "") if is_module(inner) else (node.lineno, node.module or "", alias.name)


def at_module_level(tree: ast.Module) -> ast.Module:
    """Removes functions, whose imports do not run when the module is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.If | ast.Try | ast.With):
            node.body = [inner for inner in node.body if not isinstance(inner, ast.FunctionDef)]
    return tree


def faults(file: str, parsed: ast.Module) -> list[str]:
    """Returns a line for each import that the levels do not allow."""
    importer, found = module_of(file), []
    check = engine_fault if file.startswith("engine/") else outside_fault
    for line, module, name in imports(parsed):
        if problem := check(importer, module, name):
            found.append(f"{file}:{line}: {importer} imports {module}{'.' + name if name else ''}: {problem}")
    return found


def engine_fault(importer: str, module: str, name: str) -> str | None:
    first = module.split(".")[0]
    if module.startswith("."):
        return "a relative import; write the whole name"
    if first in ("convoy_zoo", "models", "configs"):
        return "the engine may not import models or configs"
    if first != "engine" or importer == "engine" or (module, name) in PRIVATE_NAMES:
        return None
    mine, theirs = package_of(importer), package_of(module)
    if not theirs:
        return "the names of `import engine` are above every level; import the package"
    if missing := next((package for package in (mine, theirs) if package not in LEVELS), None):
        return f"{missing} is on no level"
    if mine == theirs or LEVELS[theirs] < LEVELS[mine] or importer in LAZY:
        return None
    return "upwards" if LEVELS[theirs] > LEVELS[mine] else "sideways"


def outside_fault(importer: str, module: str, name: str) -> str | None:
    package, first = importer.split(".")[0], module.split(".")[0]
    dots = len(module) - len(module.lstrip("."))
    if dots:  # convoy_zoo holds models and configs, so their files import each other relatively
        return None if dots <= importer.count(".") else f"a relative import that leaves {package}"
    if first not in ("engine", "convoy_zoo", "models", "configs", "tests", "benchmarks", "tools"):
        if package != "configs" or first in CONFIGS_USE or first in sys.stdlib_module_names:
            return None
        return f"a config imports the standard library, {', '.join(CONFIGS_USE)} and engine.config"
    for allowed, names in OUTSIDE[package].items():
        inside = module == allowed if names is not None else module == allowed or module.startswith(f"{allowed}.")
        if inside and (names is None or name in names):
            return None
    return f"{package} may only import {', '.join(OUTSIDE[package])}"


def source(file: str) -> str:
    return (TOP / file).read_text(encoding="utf-8")


@functools.cache
def tree(file: str) -> ast.Module:
    """Returns a file as parsed once for all tests, which must not change it."""
    return ast.parse(source(file))


def test_imports_point_to_lower_levels():
    assert [fault for file in FILES for fault in faults(file, tree(file))] == []


def test_every_imported_library_is_declared():
    project = tomllib.loads(source("pyproject.toml"))["project"]
    required = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    declared = {plain(re.split(r"[^\w.-]", text)[0]) for text in required}
    installed = importlib.metadata.packages_distributions()  # name to import -> names to install
    imported = {
        module.split(".")[0] for file in FILES if file.startswith("engine/") for _, module, _ in imports(tree(file))
    }
    libraries = imported - set(sys.stdlib_module_names) - {"engine"} - UNDECLARED
    assert [name for name in libraries if not set(map(plain, installed.get(name, [name]))) & declared] == []


def plain(package: str) -> str:
    """Returns the name of a package in the form in which names are compared."""
    return package.lower().replace("_", "-")


def test_every_package_has_a_level_and_engine_holds_nothing_else():
    assert {path.name for path in (TOP / "engine").iterdir() if path.is_dir() and path.name[0] != "_"} == set(LEVELS)
    assert [path.name for path in (TOP / "engine").glob("*.py")] == ["__init__.py"]


def test_lazily_loaded_names_of_engine_exist():
    assert sorted(name for names in engine._MODULES.values() for name in names) == engine.__all__
    for module in engine._MODULES:
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize(
    "package",
    [engine, engine.config, engine.layers, engine.metrics, engine.optimizers, engine.readers],
    ids=lambda package: package.__name__,
)
def test_type_checking_imports_match_the_lazy_names(package):
    assert sorted(name for names in package._MODULES.values() for name in names) == package.__all__
    parsed = tree(f"{package.__name__.replace('.', '/')}/__init__.py")
    block = next(node for node in parsed.body if isinstance(node, ast.If))
    seen = {
        node.module: tuple(alias.name for alias in node.names)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    }
    assert seen == package._MODULES


@pytest.mark.parametrize(
    "package",
    [engine.layers, engine.metrics, engine.optimizers, engine.readers],
    ids=lambda package: package.__name__,
)
def test_no_file_replaces_a_lazy_name(package):
    """Importing `engine/layers/remat.py` would set `engine.layers.remat` to the module."""
    files = {path.stem for path in (TOP / package.__name__.replace(".", "/")).glob("*")}
    assert files & set(package.__all__) == set()


def test_base_packages_import_no_jax():
    heavy = [
        f"{file}:{line}: {module}"
        for file in FILES
        if file.startswith(tuple(f"engine/{package}/" for package in PACKAGES_WITHOUT_JAX))
        for line, module, _ in imports(at_module_level(ast.parse(source(file))))
        if module.split(".")[0] in LIBRARIES
    ]
    assert heavy == []


def private_names(file: str) -> list[str]:
    """Returns the imports of private names of libraries, and the lines that use one."""
    imported = [
        f"{file}:{line}: {module}.{name}"
        for line, module, name in imports(tree(file))
        if module.split(".")[0] in LIBRARIES and re.search(r"(^|\.)_[a-z]", f"{module}.{name}")
    ]
    return imported + [f"{file}: {line}" for line in source(file).splitlines() if re.search(r"\w\._src\.\w", line)]


def test_no_private_name_of_a_library_is_used():
    found = {file: private_names(file) for file in FILES}
    assert [name for file, names in found.items() if len(names) != PRIVATE.get(file, 0) for name in names] == []
    assert [file for file in PRIVATE if not found[file]] == []


def starts_thread(file: str) -> bool:
    """Whether a file starts a thread of Python."""
    called = (node.func for node in ast.walk(tree(file)) if isinstance(node, ast.Call))
    names = {ast.unparse(function) for function in called if isinstance(function, ast.Name | ast.Attribute)}
    return not names.isdisjoint({"Thread", "Timer", "threading.Thread", "threading.Timer"})


def test_thread_whose_failure_would_be_silent_is_not_started():
    found = {file for file in FILES if file.startswith("engine/") and starts_thread(file)}
    assert found == OTHER_THREADS, "Use RunThread or start_timer of cluster/shutdown.py"


def test_file_has_a_docstring_and_at_most_400_lines():
    bare = [file for file in FILES if not ast.get_docstring(tree(file))]
    assert bare == [], "Files without a module docstring. State what each module provides."
    long = [file for file in FILES if len(source(file).splitlines()) > LONGEST]
    assert long == [], f"Files with more than {LONGEST} lines. Split each of them."


@functools.cache
def functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Returns each function of the engine with its file and line."""
    return [
        (f"{file}:{node.lineno}: {node.name}", node)
        for file in FILES
        if file.startswith("engine/")
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Returns the names of the parameters without self and cls."""
    all_of = function.args
    names = [each.arg for each in (*all_of.posonlyargs, *all_of.args, *all_of.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Returns the number of lines of a function, with its docstring and without its decorators."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def test_few_functions_have_many_parameters():
    """The parameters of optimizers are settings of a config, so they are not counted."""
    found = [
        place
        for place, function in functions()
        if len(parameters(function)) >= MANY_PARAMETERS and not place.startswith("engine/optimizers/")
    ]
    assert len(found) <= MOST_WITH_MANY_PARAMETERS, "\n".join(found)


def test_few_functions_are_long():
    found = [place for place, function in functions() if lines(function) > LONG_FUNCTION]
    assert len(found) <= MOST_LONG_FUNCTIONS, "\n".join(found)


def test_few_lines_are_hidden_from_the_type_checker():
    found = [file for file in FILES if file.startswith("engine/") for _ in re.findall("pyright: ignore", source(file))]
    assert len(found) <= MOST_PYRIGHT_IGNORES, "\n".join(found)


def test_function_with_many_parameters_and_lines_is_found():
    [function] = ast.parse("def f(self, a, /, b, *rest, c, **more):\n    return (\n        a\n    )").body
    assert isinstance(function, ast.FunctionDef)
    assert (parameters(function), lines(function)) == (["a", "b", "c"], 4)


def test_each_engine_file_has_a_test_file():
    missing = []
    for file in FILES:
        test = re.sub(r"^engine/(.*)\.py$", r"tests/\1_test.py", file)
        if file.startswith("engine/") and Path(file).name != "__init__.py" and not (TOP / test).is_file():
            missing.append(f"{file} has no {test}")
    assert missing == []


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("engine/run/log.py", "from engine.training import step", "engine.training.step: upwards"),
        ("engine/run/log.py", "def f():\n    import engine.metrics.mean", "engine.metrics.mean: sideways"),
        ("engine/observe/writer.py", "import engine.checkpoint.store", "engine.checkpoint.store: sideways"),
        ("engine/data/feed.py", "from engine import Task", "engine.Task: the names of `import engine`"),
        ("engine/api/train.py", "from engine.cli import main", "engine.cli.main: upwards"),
        ("engine/loop/trainer.py", "import models.digits", "models.digits: the engine may not import"),
        ("engine/api/load.py", "import convoy_zoo.models", "convoy_zoo.models: the engine may not import"),
        ("engine/unknown.py", "import engine.config", "engine.config: unknown is on no level"),
        ("models/digits.py", "from engine.metrics.mean import Mean", "engine.metrics.mean.Mean: models may only"),
        ("models/digits.py", "from engine import Trainr", "engine.Trainr: models may only import engine,"),
        ("models/digits.py", "import configs.digits", "configs.digits: models may only import"),
        ("models/digits.py", "import models.vit", "models.vit: models may only import"),
        ("models/digits.py", "import convoy_zoo.models.vit", "convoy_zoo.models.vit: models may only import"),
        ("models/street/lidar.py", "from ...configs import digits", "...configs: a relative import that leaves models"),
        ("configs/digits.py", "from .. import models", "..: a relative import that leaves configs"),
        ("engine/api/train.py", "from .config import load", ".config: a relative import"),
        ("configs/digits.py", "from engine import Task", "engine.Task: configs may only import"),
        ("configs/digits.py", "import models.digits", "models.digits: configs may only import"),
        ("configs/digits.py", "import jax", "jax: a config imports the standard library"),
    ],
)  # fmt: skip
def test_forbidden_import_is_reported_with_both_names(file, text, fault):
    (found,) = faults(file, ast.parse(text))
    assert found.startswith(f"{file}:{len(text.splitlines())}: {module_of(file)} imports {fault}")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("models/street/lidar.py", "from ..decoder import Decoder\nfrom .scenes import StreetScenes"),
        ("engine/loop/trainer.py", "from engine.loop.evaluation import Evaluator\nimport engine.config, jax"),
        ("models/digits.py", "from engine.layers import Dropout\nfrom engine import Task\nfrom . import base"),
        ("configs/digits.py", "from engine.config import defaults\nfrom . import base\nimport os, ml_collections"),
    ],
)  # fmt: skip
def test_allowed_import_is_not_reported(file, text):
    assert faults(file, ast.parse(text)) == []
