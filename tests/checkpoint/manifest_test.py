"""A manifest tells every change of a step's files, and of itself."""

import numpy as np
import pytest

from engine.checkpoint.manifest import (
    MANIFEST,
    Entry,
    Manifest,
    deal,
    files_of,
    hash_files,
    problems,
    read_manifest,
    write_manifest,
)
from engine.config.errors import CheckpointError

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


def found(step):
    manifest = read_manifest(step)
    return problems(step, manifest, manifest.files)


def test_holds_size_and_hash_of_every_file_and_the_digests(step):
    manifest = read_manifest(step)
    assert {name: entry.bytes for name, entry in manifest.files.items()} == {
        "marker": 4,
        "state/d/1b0f": 30,
        "state/empty": 0,
    }
    assert (
        manifest.files["state/empty"].hash == "99aa06d3014798d86001c324468d497f"
    )  # of nothing, as xxhsum -H2 gives it
    assert manifest.arrays == ARRAYS and manifest.step == 7 and manifest.bytes == 34
    assert found(step) == []


def test_every_flipped_bit_of_any_file_is_told_with_its_name(step):
    for name in ("marker", "state/d/1b0f"):
        path = step / name
        whole = path.read_bytes()
        for bit in range(8 * len(whole)):
            path.write_bytes(flipped(whole, bit))
            (problem,) = found(step)
            assert problem.startswith(f"{name}: found the hash ") and "expected" in problem
        path.write_bytes(whole)


def test_every_flipped_bit_of_the_manifest_itself_is_told(step):
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


def test_a_file_that_is_cut_or_missing_is_told_with_what_was_found_and_expected(step):
    (step / "state" / "d" / "1b0f").write_bytes(b"x" * 120)
    (step / "marker").unlink()
    assert found(step) == ["marker: is missing, expected 4 bytes", "state/d/1b0f: found 120 bytes, expected 30"]


def test_files_that_were_not_saved_are_no_damage(step):
    (step / "note").write_text("mine")
    assert found(step) == []


def test_a_manifest_that_is_missing_or_of_another_step_is_told(step):
    copy = step.rename(step.with_name("8"))
    with pytest.raises(CheckpointError, match=r"manifest.json is that of step 7"):
        read_manifest(copy)
    (copy / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"manifest.json is missing; it is written last"):
        read_manifest(copy)


def test_bytes_are_told_while_they_are_read(step):
    read = []
    manifest = read_manifest(step)
    problems(step, manifest, manifest.files, read.append)
    assert sum(read) == 34


def test_files_are_dealt_out_evenly_and_each_once():
    rng = np.random.default_rng(0)
    files = {f"d/{i:03}": int(size) for i, size in enumerate(rng.integers(0, 1000, 200))}
    hands = deal(files, 7)
    assert sorted(name for hand in hands for name in hand) == sorted(files)
    loads = [sum(files[name] for name in hand) for hand in hands]
    assert max(loads) - min(loads) <= 20
    assert deal(dict(reversed(files.items())), 7) == hands
    assert deal({"a": 1}, 3) == [["a"], [], []]
    assert [len(hand) for hand in deal(dict.fromkeys("abcdef", 0), 3)] == [2, 2, 2]


def test_the_text_is_the_same_whatever_the_order(step):
    files = {"b": Entry(1, "0" * 32), "a": Entry(2, "1" * 32)}
    text = Manifest(1, files, {"y": "0", "x": "1"}).to_text()
    assert text == Manifest(1, dict(sorted(files.items())), {"x": "1", "y": "0"}).to_text()
    assert Manifest.from_text(text) == Manifest(1, files, {"x": "1", "y": "0"})
