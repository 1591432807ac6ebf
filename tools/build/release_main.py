"""Builds the wheel and the sdist of a release in dist/, and tests the wheel: `tools/release`.

uv builds the sdist, and the wheel from the sdist. The wheel is tested in an environment of its own, in an empty folder,
and by tests/tools/wheel_test.py. Nothing is published.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNRELEASED = "Unreleased"


def main(argv: Sequence[str]) -> int:
    """Builds and tests; returns 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="tools/release", description=__doc__, allow_abbrev=False)
    parser.add_argument("--try", action="store_true", help="build and test a tree that is not ready for a release")
    tries = getattr(parser.parse_args(argv), "try")
    if shutil.which("uv") is None:
        print("tools/release: uv is not installed. It is in the extra dev: pip install -e '.[dev]'.", file=sys.stderr)
        return 1
    found = [] if tries else [*problems(ROOT), *uncommitted(ROOT)]
    if found:
        print(*(f"tools/release: {problem}" for problem in found), sep="\n", file=sys.stderr)
        return 1
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    run("uv", "build", "--quiet", "--out-dir", str(dist), cwd=ROOT)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    if missing := not_in_wheel(sdist, wheel):
        print(f"tools/release: the wheel lacks files of the sdist: {', '.join(missing)}", file=sys.stderr)
        return 1
    try_wheel(wheel)
    env = {**os.environ, "CONVOY_WHEEL": str(wheel)}
    run(sys.executable, "-m", "pytest", "-q", "tests/tools/wheel_test.py", cwd=ROOT, env=env)
    for warning in warnings(ROOT):
        print(f"tools/release: warning: {warning}", file=sys.stderr)
    print(f"Built and tested {wheel.relative_to(ROOT)} and {sdist.relative_to(ROOT)}.")
    if not tries:
        print(f"To publish them: uv publish dist/*, then git tag v{version_of(ROOT)} && git push --tags")
    return 0


def problems(root: Path) -> list[str]:
    """Returns what of the version and the changelog is not ready for a release."""
    version, found = version_of(root), []
    stated = re.search(
        r'^__version__ = "(.*?)"', (root / "engine/__init__.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    if stated is None or stated[1] != version:
        found.append(f"engine/__init__.py states another version than pyproject.toml, which has {version}.")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        found.append(f"pyproject.toml: version {version} is not MAJOR.MINOR.PATCH.")
    entries = changelog(root)
    if entries.get(UNRELEASED):
        found.append(f"CHANGELOG.md: [{UNRELEASED}] has entries. Move them below a heading '## [VERSION] - DATE'.")
    if not entries.get(version):
        found.append(f"CHANGELOG.md: there is no '## [{version}] - DATE' with entries. Add it, or raise the version.")
    return found


def uncommitted(root: Path) -> list[str]:
    """Returns a sentence if the working tree differs from the last commit."""
    done = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        return [f"git status failed: {done.stderr.strip()}"]
    return ["the working tree has changes that are not committed."] if done.stdout else []


def warnings(root: Path) -> list[str]:
    """Returns what the owner should know before publishing."""
    if any(root.glob("LICEN[CS]E*")):
        return []
    return ["there is no file LICENSE. Put the licence there: the wheel and the sdist then contain it."]


def version_of(root: Path) -> str:
    """Returns the version in pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def changelog(root: Path) -> dict[str, str]:
    """Returns version -> its entries. A version needs a date, unless it is [Unreleased]."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    parts = re.split(rf"^## \[({UNRELEASED}|\d+\.\d+\.\d+(?= *\] - \d{{4}}-\d\d-\d\d))\].*$", text, flags=re.MULTILINE)
    entries = (re.sub(r"^(#.*|\[.*\]: .*)$", "", part, flags=re.MULTILINE).strip() for part in parts[2::2])
    return dict(zip(parts[1::2], entries, strict=True))


def not_in_wheel(sdist: Path, wheel: Path) -> list[str]:
    """Returns the Python files of the packages that only the sdist has."""
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames() if name.endswith(".py")}
    with zipfile.ZipFile(wheel) as archive:
        return sorted(files - {*archive.namelist(), "setup.py"})


def try_wheel(wheel: Path) -> None:
    """Installs the wheel with its dependencies into a new environment, and trains and evaluates in an empty folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment, empty = folder / "environment", folder / "empty"
        empty.mkdir()
        run("uv", "venv", "--quiet", "--python", sys.executable, str(environment), cwd=folder)
        python, convoy = environment / "bin/python", environment / "bin/convoy"
        run("uv", "pip", "install", "--quiet", "--python", str(python), f"{wheel}[examples]", cwd=folder)
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        for words in (
            [str(python), "-c", "import engine; from convoy_zoo.models.digits import Digits; engine.Task"],
            [str(convoy), "train", "--config=configs.digits", "--config.train.total=2 epochs", "--workdir=run"],
            [str(convoy), "evaluate", "run"],
        ):
            run(*words, cwd=empty, env=env)


def run(*words: str, cwd: Path, env: dict[str, str] | None = None) -> None:
    """Runs a command; if it fails, ends this program with its exit code."""
    print("+", *words, flush=True)
    code = subprocess.run(words, cwd=cwd, env=env, check=False).returncode
    if code:
        sys.exit(f"tools/release: this command failed with {code}: {' '.join(words)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
