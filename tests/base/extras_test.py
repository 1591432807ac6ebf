import pathlib

import pytest

from engine.base import extras


def test_code_that_is_not_installed_is_installed_from_its_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    folder = pathlib.Path(extras.__file__).resolve().parents[2]
    command = extras.install_command("plot")
    assert command in (f"pip install -e '{folder}[plot]'", f"pip install -e {folder}[plot]")


@pytest.mark.parametrize("name", ["convoy_engine-0.2.0.dist-info", "convoy_engine.egg-info"])
def test_extras_of_an_installed_package_are_found_by_its_name(monkeypatch, tmp_path, name):
    (tmp_path / name).mkdir()
    for file in ("METADATA", "PKG-INFO"):
        (tmp_path / name / file).write_text("Metadata-Version: 2.4\nName: convoy-engine\nVersion: 0.2.0\n")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert extras.install_command("plot") == "pip install 'convoy-engine[plot]'"
