"""A manifest detects every change of a step's files and of itself; readers lock their step."""

import dataclasses
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from engine.base.errors import CheckpointError
from engine.checkpoint.manifest import (
    FORMAT,
    MANIFEST,
    FileEntry,
    Manifest,
    UnsupportedFormat,
    delete_lock,
    divide_files,
    files_of,
    find_problems,
    hash_files,
    read_lock,
    read_manifest,
    write_manifest,
)

ARRAYS = {"params/encoder/0/kernel": "0123456789abcdef"}


@pytest.fixture
def step(tmp_path):
    """The directory of a step with three files, one of them empty, and its manifest."""
    directory = tmp_path / "7"
    (directory / "state" / "d").mkdir(parents=True)
    (directory / "state" / "d" / "1b0f").write_bytes(np.random.default_rng(0).bytes(30))
    (directory / "state" / "empty").write_bytes(b"")
    (directory / "marker").write_text("done")
    write_manifest(directory, Manifest(7, hash_files(directory, files_of(directory)), ARRAYS))
    return directory


def problems(step):
    manifest = read_manifest(step)
    return find_problems(step, manifest, manifest.files)


def test_manifest_has_size_and_hash_of_every_file_and_the_digests(step):
    manifest = read_manifest(step)
    assert {name: entry.bytes for name, entry in manifest.files.items()} == {
        "marker": 4,
        "state/d/1b0f": 30,
        "state/empty": 0,
    }
    assert (
        manifest.files["state/empty"].hash == "99aa06d3014798d86001c324468d497f"
    )  # of empty input, as printed by xxhsum -H2
    assert manifest.arrays == ARRAYS and manifest.step == 7 and manifest.bytes == 34
    assert problems(step) == []


def test_every_flipped_bit_of_a_file_is_reported_with_its_name(step):
    for name in ("marker", "state/d/1b0f"):
        path = step / name
        whole = path.read_bytes()
        for bit in range(8 * len(whole)):
            path.write_bytes(flipped(whole, bit))
            (problem,) = problems(step)
            assert problem.startswith(f"{name}: found the hash ") and "expected" in problem
        path.write_bytes(whole)


def test_every_flipped_bit_of_the_manifest_is_detected(step):
    path = step / MANIFEST
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        with pytest.raises(ValueError):
            Manifest.from_text(flipped(whole, bit).decode())
    path.write_bytes(flipped(whole, 100))
    with pytest.raises(CheckpointError, match=rf"^{MANIFEST} "):
        read_manifest(step)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_missing_or_resized_file_is_reported_with_found_and_expected(step):
    (step / "state" / "d" / "1b0f").write_bytes(b"x" * 120)
    (step / "marker").unlink()
    assert problems(step) == ["marker: is missing, expected 4 bytes", "state/d/1b0f: found 120 bytes, expected 30"]


def test_additional_files_are_no_problem(step):
    (step / "note").write_text("mine")
    assert problems(step) == []


def test_missing_manifest_or_manifest_of_another_step_raises(step):
    copy = step.rename(step.with_name("8"))
    with pytest.raises(CheckpointError, match=r"manifest.json belongs to step 7"):
        read_manifest(copy)
    (copy / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"manifest.json is missing; it is written last"):
        read_manifest(copy)


def test_find_problems_reports_the_bytes_read(step):
    read = []
    manifest = read_manifest(step)
    find_problems(step, manifest, manifest.files, read.append)
    assert sum(read) == 34


def test_divide_files_is_even_and_complete():
    rng = np.random.default_rng(0)
    files = {f"d/{i:03}": int(size) for i, size in enumerate(rng.integers(0, 1000, 200))}
    shares = divide_files(files, 7)
    assert sorted(name for share in shares for name in share) == sorted(files)
    loads = [sum(files[name] for name in share) for share in shares]
    assert max(loads) - min(loads) <= 20
    assert divide_files(dict(reversed(files.items())), 7) == shares
    assert shares[3][0] == sorted(files, key=lambda name: (-files[name], name))[3]  # equal shares: the first is next
    assert divide_files({"a": 1}, 3) == [["a"], [], []]
    assert [len(share) for share in divide_files(dict.fromkeys("abcdef", 0), 3)] == [2, 2, 2]


def test_manifest_text_does_not_depend_on_order(step):
    files = {"b": FileEntry(1, "0" * 32), "a": FileEntry(2, "1" * 32)}
    text = Manifest(1, files, {"y": "0", "x": "1"}).to_text()
    assert text == Manifest(1, dict(sorted(files.items())), {"x": "1", "y": "0"}).to_text()
    assert Manifest.from_text(text) == Manifest(1, files, {"x": "1", "y": "0"})


OLD = """{
 "hash": "%s",
 "step": 7,
 "files": {
  "marker": {
   "bytes": 4,
   "hash": "00000000000000000000000000000000"
  }
 },
 "arrays": {
  "w": "0123456789abcdef"
 }
}
"""


def test_manifest_without_format_has_format_1():
    import xxhash

    content = {"step": 7, "files": {"marker": {"bytes": 4, "hash": "0" * 32}}, "arrays": {"w": "0123456789abcdef"}}
    text = OLD % xxhash.xxh3_128(json.dumps(content).encode()).hexdigest()
    assert Manifest.from_text(text) == Manifest(
        7, {"marker": FileEntry(4, "0" * 32)}, {"w": "0123456789abcdef"}, format=1
    )
    with pytest.raises(ValueError, match="was changed after it was written"):
        Manifest.from_text(text.replace('"step": 7', '"step": 8'))


def test_newer_manifest_format_raises_with_next_step(step):
    assert json.loads((step / MANIFEST).read_text())["format"] == FORMAT == 1
    write_manifest(step, dataclasses.replace(read_manifest(step), format=3))
    with pytest.raises(UnsupportedFormat) as error:
        read_manifest(step)
    assert str(error.value) == (
        f"{step}: was saved in format 3; this version of Convoy reads up to format 2. Use the version that saved it, "
        "or a newer one."
    )


READER = """
    import sys
    from pathlib import Path
    from engine.checkpoint.manifest import read_lock
    with read_lock(Path(sys.argv[1])):
        print("reading", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize("killed", [False, True])
def test_read_lock_of_another_process_blocks_deletion_until_it_ends(step, killed):
    words = [sys.executable, "-c", textwrap.dedent(READER), str(step)]
    reader = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None and reader.stdout.readline() == "reading\n"
    with delete_lock(step) as free:
        assert not free
    if killed:
        reader.kill()
    reader.communicate("")
    with delete_lock(step) as free:
        assert free


def test_read_locks_are_shared(step):
    with read_lock(step), read_lock(step), delete_lock(step) as free:
        assert not free
    with delete_lock(step) as free:
        assert free


def test_read_lock_of_a_removed_step_raises(step):
    step.rename(step.with_name("7.deleted"))
    with delete_lock(step) as free:
        assert free
    with pytest.raises(FileNotFoundError), read_lock(step):
        pass
