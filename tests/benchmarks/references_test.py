"""The command that compares with outside programs: its arguments, exit codes, rows and environments."""

import importlib
import json
import math
import sys

import pytest

from benchmarks.references import __main__ as references
from benchmarks.references import average_precision
from benchmarks.references.environment import LOCKS, NOUNS, OUTSIDE, Environment
from benchmarks.references.exchange import difference, largest_difference
from benchmarks.references.rows import Row
from engine.base.errors import RunError


@pytest.fixture
def compare(monkeypatch):
    """Lets a test give the rows of average_precision, for which the outside program would be needed."""

    def give(*rows):
        monkeypatch.setattr(average_precision, "compare", lambda environment, cases: iter(rows))

    return give


def run(tmp_path, *arguments):
    return references.main(["--only=average_precision", f"--environments={tmp_path}", *arguments])


@pytest.mark.parametrize(("found", "code"), [(1e-13, 0), (1e-12, 0), (2e-12, 1), (math.nan, 1), (math.inf, 1)])
def test_a_difference_above_the_tolerance_fails(compare, tmp_path, capsys, found, code):
    compare(Row("AP", 3, found, 1e-12), Row("AR", 3, 0.0))
    assert run(tmp_path, f"--json={tmp_path / 'rows.json'}") == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "average_precision: with pycocotools 2.0.11"
    assert lines[2].split()[:3] == ["average_precision:", "AP", "3"]
    assert ("DIFFERS" in lines[2], "DIFFERS" in lines[3]) == (bool(code), False)
    assert [row["item"] for row in json.loads((tmp_path / "rows.json").read_text())] == ["AP", "AR"]


def test_no_cases_and_no_rows_are_no_agreement(compare, tmp_path):
    assert not Row("AP", 0, 0.0).agrees
    compare()
    assert run(tmp_path) == 1


def test_unknown_comparisons_and_numbers_are_refused(capsys):
    assert references.main(["--only=average_precision,speed"]) == 2
    assert "--only: speed is unknown. Comparisons: adapters, argoverse2_map, " in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        references.main(["--cases=0"])
    assert error.value.code == 2
    assert "'0' is not a positive integer" in capsys.readouterr().err


def test_items_are_those_of_one_comparison(capsys):
    for arguments, message in [
        (["--items=resnet18"], "belongs to one comparison. Give it with --only."),
        (["--only=backbones", "--items=resnet18,resnet52"], "resnet52 is unknown. Items of backbones: tiny-resnet-d, "),
        (["--only=average_precision", "--items=AP"], "AP is unknown. Items of average_precision: none."),
    ]:
        assert references.main(arguments) == 2
        assert f"--items: {message}" in capsys.readouterr().err


def test_each_comparison_has_a_complete_lock_file_an_outside_program_and_a_module(capsys):
    assert references.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == list(NOUNS)
    for noun in NOUNS:
        assert callable(importlib.import_module(f"benchmarks.references.{noun}").compare)
        assert (OUTSIDE / f"{noun}.py").is_file()
        lock = (LOCKS / f"{noun}.txt").read_text(encoding="utf-8")
        packages = [part for part in lock.split("\n") if part and not part.startswith((" ", "#"))]
        assert all("==" in package and package.endswith("\\") for package in packages), noun


def test_an_outside_program_that_fails_is_a_sentence_and_fails_the_command(tmp_path, capsys):
    environment = Environment("average_precision", tmp_path)
    environment.python.parent.mkdir(parents=True)
    environment.python.symlink_to(sys.executable)  # an environment without pycocotools
    (environment.path / "complete").touch()
    with pytest.raises(RunError, match=r"average_precision: the command .* ended with 1:\n(.*\n)*ModuleNotFoundError"):
        environment.run(tmp_path)
    assert run(tmp_path, "--cases=1") == 1
    assert "average_precision: failed: average_precision: the command" in capsys.readouterr().err


def test_environments_differ_by_lock_file(tmp_path):
    names = {Environment(noun, tmp_path).path.name for noun in NOUNS}
    assert len(names) == len(NOUNS)


def test_an_environment_has_the_python_that_its_lock_file_names(tmp_path, monkeypatch):
    assert Environment("waymo_motion", tmp_path).path.name.startswith("waymo_motion-3.10-")
    for noun, line in {"own": "numpy", "other": "# python 3.1"}.items():
        (tmp_path / f"{noun}.in").write_text(f"{line}\n# python 3.2\n")
        (tmp_path / f"{noun}.txt").touch()
    own, other = (Environment(noun, tmp_path, locks=tmp_path) for noun in ("own", "other"))
    assert own.version == f"{sys.version_info[0]}.{sys.version_info[1]}"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        RunError, match=r"other needs Python 3\.1, and PATH has neither it nor uv\. Install one of them"
    ):
        other.create()


def test_nan_equals_only_nan():
    assert (difference(math.nan, math.nan), difference(1.0, math.nan), difference(math.nan, 1.0)) == (
        0,
        math.inf,
        math.inf,
    )
    assert (largest_difference([(1.0, 1.5), (2.0, 2.0)]), largest_difference([])) == (0.5, math.inf)
