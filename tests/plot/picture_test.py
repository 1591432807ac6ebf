import re
from pathlib import Path

import pytest

from engine.base.errors import ConfigError
from engine.plot.curves import Panel
from engine.plot.picture import check_file, write_picture

PANELS = [Panel("loss", {"train": {1: 100.0, 2: 1.0}, "val": {2: 2.0}}), Panel("accuracy", {"train": {1: 0.5}})]


@pytest.mark.parametrize(("name", "begin"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_picture_is_written(name, begin, tmp_path):
    write_picture(tmp_path / name, PANELS)
    assert (tmp_path / name).read_bytes().startswith(begin)


def test_curve_that_another_covers_is_seen(tmp_path):
    same = {0: 1.0, 1: 1.0}
    write_picture(tmp_path / "a.svg", [Panel("loss", {"first": same, "second": same, "third": same})])
    widths = re.findall(r"stroke-width: ([\d.]+); stroke-linecap: square", (tmp_path / "a.svg").read_text())
    assert {"4.5", "3", "1.5"} <= {*widths}


def test_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be written \(No such file or directory\)"):
        write_picture(tmp_path / "no/a.png", PANELS)


def test_other_formats_and_a_missing_library_are_errors(monkeypatch):
    with pytest.raises(ConfigError, match=r"--out = a.gif: allowed are names that end in .png, .svg, .pdf"):
        check_file(Path("a.gif"))
    monkeypatch.setattr("sys.path", [])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install .*\[plot\]'\. Without --out"):
        check_file(Path("a.png"))
