"""The wheel outside the repository: training, a missing extra, and a user's own folders `models/` and `configs/`.

The wheel is built and installed without a network. The packages of this environment serve as those that it needs. An
editor reads the names of the wheel, and of a clone that `pip install -e` has installed.
"""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.tools.editor import opened
from tools.build import release_main

ROOT = pathlib.Path(__file__).parents[2]
SHORT = ["--config.train.total=4 steps", "--config.evaluations.heldout.every=4 steps", "--config.checkpoint.best=None"]
OWN_MODEL = """from convoy_zoo.models.digits import Digits as _Digits, scans


class Digits(_Digits):
    def loss(self, model, batch, rng):
        raise RuntimeError("the user's own model")
"""
OWN_CONFIG = """from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="models.digits.Digits")
    c.data = dict(target="models.digits.scans")
    c.train.total = "2 steps"
    c.train.global_batch_size = 8
    return c
"""


SHOWN = {
    "engine.Task": ("class Task(", "A model, its loss and its metrics."),
    "engine.train": ("def train(\n    config: AnyConfig,", "Trains a config to its last step"),
    "engine.layers.Dense": ("class Dense(\n    features_in: int,", "over the last dimension."),
    "engine.metrics.AveragePrecision": ("class AveragePrecision(", "Average precision of detections"),
    "Digits": ("class Digits(", "Classifies a scan as one of ten digits."),
}
"""Name -> what an editor shows of its signature and of its docstring."""
USE = ["import engine, engine.layers, engine.metrics", "from convoy_zoo.models.digits import Digits"]
USE += [f"value = {name}" for name in SHOWN]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of what the wheel contains, in the layout of the repository."""
    folder = tmp_path_factory.mktemp("clone")
    ignore = shutil.ignore_patterns("__pycache__", "BUILD.bazel")
    for name in ("engine", "models", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copytree(ROOT / "convoy_zoo", folder / "convoy_zoo", ignore=ignore, symlinks=True)
    for name in ("models", "configs"):
        if not (folder / "convoy_zoo" / name).exists():  # Bazel leaves out the links
            (folder / "convoy_zoo" / name).symlink_to(f"../{name}")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    (folder / "LICENSE").write_text("The owner's licence.\n")
    return folder


@pytest.fixture(scope="module")
def built(clone):
    """The wheel, the wheel that `pip install -e` installs, and the sdist, as setuptools builds them."""
    kinds = ("wheel", "editable", "sdist")
    build = f"from setuptools import build_meta as b; [getattr(b, f'build_{{k}}')(f'dist/{{k}}') for k in {kinds}]"
    subprocess.run([sys.executable, "-c", build], cwd=clone, check=True, capture_output=True, text=True, timeout=300)
    found = {name: next((clone / "dist" / name).glob("convoy_engine*")) for name in kinds}
    if released := os.environ.get("CONVOY_WHEEL"):  # tools/release tests the wheel that it has built
        found["wheel"] = pathlib.Path(released)
    return found


@pytest.fixture(scope="module")
def wheel(built):
    return built["wheel"]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the content of the wheel, as pip would install it without dependencies."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def environments(built, installed, tmp_path_factory):
    """An environment with the wheel and one with the clone; both read the other packages from that of this process."""
    found = {}
    for name in ("wheel", "editable"):
        found[name] = tmp_path_factory.mktemp(name)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", found[name]], check=True, timeout=300)
        (packages,) = found[name].glob("lib/python*/site-packages")
        (packages / "others.pth").write_text("\n".join(packages_without_engine()))
        if name == "wheel":
            (packages / "wheel.pth").write_text(str(installed))
        else:
            with zipfile.ZipFile(built[name]) as archive:
                archive.extractall(packages)
    return found


def packages_without_engine() -> list[str]:
    """The entries of sys.path that do not hold the repository."""
    return [entry for entry in sys.path if entry and not (pathlib.Path(entry) / "engine").is_dir()]


@pytest.mark.parametrize(
    ("folder", "most"), [("scaffold/templates", 10), ("report/templates", 8), ("report/vendor", 3)]
)
def test_wheel_has_the_files_of_projects_and_reports(installed, folder, most):
    folders = [top / "engine" / folder for top in (ROOT, installed)]
    here, there = ({path.relative_to(each) for path in each.rglob("*") if path.is_file()} for each in folders)
    assert len(here) > most and here == there


@pytest.fixture
def convoy(installed, tmp_path):
    """Runs `convoy` from an empty folder, with the wheel and without the repository."""

    def run(*words, without=()):
        """Runs the words as the installed command does; imports of the modules `without` fail."""
        packages = packages_without_engine()
        start = f"import sys; sys.modules.update(dict.fromkeys({without})); from engine.cli.main import run; run()"
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), *packages]), "PYTHONSAFEPATH": "1"}
        env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # to compile in less time
        command = [sys.executable, "-S", "-c", start, *words]  # -S: no .pth file adds the repository
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)

    return run


def own_folders(folder: pathlib.Path) -> None:
    """Writes a user's `models/` and `configs/`."""
    files = {"models/__init__.py": "", "models/digits.py": OWN_MODEL, "configs/__init__.py": ""}
    files |= {"configs/mine.py": OWN_CONFIG}
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def test_wheel_contains_every_package_and_no_top_level_models_or_configs(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("engine/**/*.py")}
    files |= {f"convoy_zoo/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("[mc]o*s/**/*.py")}
    assert files | {"convoy_zoo/__init__.py", "engine/py.typed"} <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"engine", "convoy_zoo"}
    (entry_points,) = [name for name in names if name.endswith("/entry_points.txt")]
    assert "convoy = engine.cli.entry:run" in zipfile.ZipFile(wheel).read(entry_points).decode().splitlines()


def test_sdist_has_the_files_of_the_wheel_and_the_licence(built):
    assert release_main.not_in_wheel(built["sdist"], built["wheel"]) == []
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "pyproject.toml", "engine/py.typed", "convoy_zoo/models/street/lidar.py"} <= names
    assert not any(name.startswith(("models", "configs", "tests")) for name in names)


@pytest.mark.skipif("CONVOY_WHEEL" in os.environ, reason="the owner chooses a licence")
def test_wheel_contains_a_licence_that_the_repository_has(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (licence,) = [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
        assert archive.read(licence) == b"The owner's licence.\n"


@pytest.mark.slow
def test_editor_shows_names_with_docstrings(environments, tmp_path):
    files = {name: tmp_path / name / "use.py" for name in environments}
    with contextlib.ExitStack() as stack:
        editors = {}
        for name, file in files.items():
            file.parent.mkdir()
            file.write_text("\n".join(USE))
            editors[name] = stack.enter_context(opened(file, environments[name]))  # both servers work at the same time
        for environment, editor in editors.items():
            assert (environment, editor.problems()) == (environment, [])
            for name, expected in SHOWN.items():
                line = USE.index(f"value = {name}")
                shown = editor.hover(line, len(USE[line]) - 1)
                assert [text for text in expected if text not in shown] == [], f"{environment}: {name}: {shown}"


def test_wheel_trains_resumes_evaluates_and_exports(convoy, tmp_path):
    done = convoy("train", "--config=configs.digits", *SHORT)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "runs/digits/config.txt").read_text()
    assert "task.target: convoy_zoo.models.digits.Digits" in text
    own_folders(tmp_path)  # from now on `models.digits.Digits` is another class
    longer = ["--config.train.total=6 steps", "--accept-schedule-change"]
    done = convoy("train", "--config=convoy_zoo.configs.digits", *SHORT[1:], *longer)
    assert done.returncode == 0, done.stderr
    for words in (["evaluate", "runs/digits"], ["export", "runs/digits", "--out=model.safetensors"]):
        done = convoy(*words)
        assert done.returncode == 0, done.stderr


def test_folders_of_the_user_do_not_hide_the_zoo(convoy, tmp_path):
    own_folders(tmp_path)
    done = convoy("train", "--config=configs.digits", *SHORT)
    assert done.returncode == 0, done.stderr
    done = convoy("train", "--config=configs.mine")
    assert "RuntimeError: the user's own model" in done.stderr


def test_missing_extra_is_one_sentence(convoy):
    done = convoy("train", "--config=configs.digits", without=["sklearn"])
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "data.target: convoy_zoo.models.digits.scans needs the module 'sklearn', which is not installed (" in line
    assert line.endswith("It comes with the extra 'examples': pip install 'convoy-engine[examples]'.")


def test_misspelt_config_of_the_zoo_is_one_sentence(convoy):
    done = convoy("train", "--config=configs.digts")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "Did you mean configs.digits" in line
