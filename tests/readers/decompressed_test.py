"""Copies hold all bytes of gzip and zlib files, or those before a damage, which is reported."""

import gzip
import zlib

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.readers import decompressed

DATA = np.random.default_rng(0).integers(0, 4, 3 << 20).astype(np.uint8).tobytes()  # several blocks


def copied(tmp_path, data, kind="gzip"):
    path = tmp_path / "a"
    path.write_bytes(data)
    found = decompressed.write_copy(str(path), "f-1", kind)
    if found is None:
        return None
    with open(found[0], "rb") as file:
        return file.read(), found[1]


def test_whole_files_are_copied(tmp_path, capfd):
    packed = gzip.compress(DATA, 1)
    assert copied(tmp_path, packed) == (DATA, True)
    assert "decompressing" in capfd.readouterr().err
    assert copied(tmp_path, zlib.compress(DATA, 9), "zlib") == (DATA, True)
    assert copied(tmp_path, packed + gzip.compress(b"more") + bytes(700)) == (DATA + b"more", True)
    assert copied(tmp_path, gzip.compress(b"")) == (b"", True)
    assert [path.name for path in (tmp_path / ".convoy_index").iterdir()] == ["a.f-1.plain"]
    assert decompressed.find_copy(str(tmp_path / "a"), "f-1", 0)
    assert decompressed.find_copy(str(tmp_path / "a"), "f-1", 1) is None


@pytest.mark.parametrize("kind", ["gzip", "zlib"])
def test_damaged_files_are_copied_up_to_the_damage(tmp_path, kind):
    packed = (gzip if kind == "gzip" else zlib).compress(DATA)
    for damaged in (packed[: len(packed) // 2], packed[:-1], packed[:-6] + bytes(6), packed + b"rest"):
        data, complete = copied(tmp_path, damaged, kind) or (b"", True)
        assert not complete and DATA.startswith(data[:100]) and len(data) > 1000
    assert copied(tmp_path, packed[:2] + bytes(50), kind) is None


def test_kind_is_recognised_by_the_first_bytes():
    for level in range(10):
        assert decompressed.compression(zlib.compress(b"x", level)) == "zlib"
    assert decompressed.compression(gzip.compress(b"x")) == "gzip"
    assert [decompressed.compression(begin) for begin in (b"", b"x", b"\x08\x00", b"\x88\x1c")] == [None] * 4


def test_copy_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    (tmp_path / ".convoy_index").write_text("")  # no folder, also for root
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with pytest.raises(DataError, match=r"a is compressed by gzip, and its copy cannot be written to .*Make room"):
        copied(tmp_path, gzip.compress(b"x"))
