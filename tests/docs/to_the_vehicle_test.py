"""The bundle of "From a run to the vehicle" is checked and used where only some packages are installed."""

import os
import re
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import runs
from tests.docs import pages

PAGE = pages.ROOT / "docs" / "to-the-vehicle.md"
pytestmark = pytest.mark.multiprocess


def lines(mark: str) -> list[str]:
    """Returns the commands of the blocks with a mark."""
    found = [block.text for block in pages.blocks(PAGE.read_text()) if mark in block.marks]
    return [line for text in found for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the page, and those that its commands write, which `pages_test.py` does not run."""
    folder = tmp_path_factory.mktemp("page")
    pages.write_files(PAGE, folder)
    for command in pages.commands(PAGE):
        done = pages.run(command, folder)
        assert done.returncode == pages.exit_code(command), f"{command}\n{done.stdout}\n{done.stderr}"
    return folder


def with_requirements(name: str, found: dict[str, metadata.Distribution]) -> dict[str, metadata.Distribution]:
    """Adds an installed distribution and what it needs, by name."""
    if name not in found:
        found[name] = metadata.distribution(name)
        for text in found[name].requires or ():
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                with_requirements(wanted.name, found)
    return found


def environment(names: list[str], folder: Path) -> Path:
    """Makes a folder with links to what `pip install NAMES` would install, and nothing else."""
    folder.mkdir()
    found: dict[str, metadata.Distribution] = {}
    for name in names:
        with_requirements(name, found)
    for distribution in found.values():
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__", "bin"}:
            (folder / top).symlink_to(str(distribution.locate_file(top)))
    return folder


@pytest.fixture(scope="module")
def converted(folder):
    """The folder with the ONNX programs, too."""
    if not (is_installed("jax2onnx") and is_installed("onnxruntime")):
        pytest.skip("needs jax2onnx and onnxruntime")
    for command in lines("onnx"):
        done = pages.run(command, folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return folder


@pytest.mark.parametrize("library", ["jax", "onnxruntime"])
def test_bundle_runs_in_an_environment_with_one_library(library, request, tmp_path):
    folder = request.getfixturevalue("folder" if library == "jax" else "converted")
    made, installed, *commands = next(
        list(group) for group in groups(lines("vehicle")) if any(library in line.split() for line in group)
    )
    assert re.fullmatch(r"python -m venv [\w-]+", made)
    names = installed.partition(" install ")[2].split()
    packages = environment(names, tmp_path / "packages")
    assert not {"orbax", "flax", "engine"} & {path.name for path in packages.iterdir()}
    for command in commands:
        _, *words = shlex.split(command)
        # -S leaves out the packages of this interpreter.
        done = runs.run([sys.executable, "-S", *words], cwd=folder, env={**os.environ, "PYTHONPATH": str(packages)})
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if "check.py" in command:
            checked = [line for line in done.stdout.splitlines() if f"({library} " in line]
            assert checked and all(re.search("agree, largest difference", line) for line in checked)


def groups(commands: list[str]) -> list[list[str]]:
    """Returns the commands of each environment; the first of them makes it."""
    found: list[list[str]] = []
    for command in commands:
        found += [[]] if " -m venv " in command else []
        found[-1].append(command)
    return found


def is_installed(name: str) -> bool:
    try:
        return bool(metadata.distribution(name))
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(shutil.which("minisign") is None, reason="needs the program minisign (apt-get install minisign)")
def test_signed_bundle_is_verified(folder):
    printed = ""
    for command in lines("signed"):
        words = shlex.split(command)
        done = runs.run(words, cwd=folder) if words[0] == "minisign" else pages.run(command, folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    assert re.search("signed by the key [0-9A-F]{16}", printed)


def test_changed_bundle_ends_with_the_sentence_of_the_page(folder, tmp_path):
    changed = Path(shutil.copytree(folder / "digits", tmp_path / "digits"))
    content = (changed / "weights.safetensors").read_bytes()
    (changed / "weights.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = runs.run([sys.executable, "check.py", "."], cwd=changed)
    assert done.returncode == 1
    assert done.stderr.replace(".:", "digits:", 1) in PAGE.read_text()


def test_wrong_input_is_the_sentence_of_the_page(folder):
    done = pages.run("python wrong.py", folder)
    assert done.returncode == 0 and done.stdout in PAGE.read_text()
