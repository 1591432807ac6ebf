import os

import pytest

from engine.base.errors import DataError
from engine.readers.files import FINGERPRINT_FILES, file_names, find_files, sampled_files


def test_files_of_a_wildcard_are_sorted_and_paths_keep_their_order(tmp_path):
    for name in ("b.rec", "a.rec", "c"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".hidden.rec").write_text("")

    def found(*patterns):
        return [os.path.basename(path) for path in find_files([f"{tmp_path}/{p}" for p in patterns], "record")]

    assert found("*.rec") == ["a.rec", "b.rec"]
    assert found("c", "*.rec") == ["c", "a.rec", "b.rec"]
    assert find_files(tmp_path / "c", "record") == find_files([tmp_path / "c"], "record") == [f"{tmp_path}/c"]
    with pytest.raises(DataError, match=r"/d: no such file. Correct the pattern"):
        found("c", "d")
    with pytest.raises(DataError, match=r"The list of paths is empty. Name at least one record file"):
        find_files([], "record")


def test_existing_leading_part_of_a_pattern_is_literal(tmp_path):
    for folder in ("a[1]", "a1"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").touch()
    assert find_files(f"{tmp_path}/a[1]/*", "record") == [f"{tmp_path}/a[1]/x"]
    assert find_files(f"{tmp_path}/a[12]/*", "record") == [f"{tmp_path}/a1/x"]


def test_samples_identify_the_content_of_the_first_files(tmp_path):
    paths = []
    for i in range(FINGERPRINT_FILES + 2):
        paths.append(str(tmp_path / f"{i:02}"))
        (tmp_path / f"{i:02}").write_bytes(bytes([i]) * 5000)
    first = sampled_files(paths)
    assert first[-1] == "2 more files"
    assert file_names(paths)[1] == "01 5000 bytes" and first[1].startswith("01 5000 bytes ")
    (tmp_path / "01").write_bytes(bytes([1]) * 4999 + b"\0")
    changed = sampled_files(paths)
    assert [i for i in range(len(first)) if first[i] != changed[i]] == [1]
