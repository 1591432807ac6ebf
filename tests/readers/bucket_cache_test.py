import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.source import ArraySource
from engine.readers import bucket_cache
from engine.readers.array_record import ArrayRecordSource, write_array_record
from engine.readers.bucket_cache import cached_files
from engine.readers.record_manifest import (
    MANIFEST,
    RecordManifest,
    Shard,
    checksum,
    lengths_path,
    manifest_path,
    save_lengths,
)
from tests import damages
from tests.bucket_store import release_cache

pytestmark = pytest.mark.multiprocess

READ = """
import sys
from engine.readers.array_record import ArrayRecordSource, write_array_record
print(len(ArrayRecordSource(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def write(bucket, monkeypatch):
    """A function that writes an object into the bucket; addresses are read through a cache of 1 MiB."""
    monkeypatch.setenv(bucket_cache.SIZE, str(1 / 1024))
    return lambda key, value: bucket.write(key, value).result()


def write_two_shards(out):
    """A dataset of two shards, as `convoy data write` writes it."""
    shards = []
    for number in range(2):
        path = out.with_name(f"{out.stem}-0000{number}-of-00002{out.suffix}")
        values = 10 * number + np.arange(3)
        write_array_record(ArraySource({"x": np.stack([values, values], axis=1)}), str(path))
        size = path.stat().st_size
        shards.append(Shard(path.name, 3 * number, 3 * number + 3, 3, size, checksum(path)))
    save_lengths(lengths_path(out), {"x": np.full(6, 2, np.int32)})
    manifest_path(out).write_text(RecordManifest({}, "stop", shards, True).to_text())


def test_dataset_in_a_bucket_is_read_with_its_manifest_and_without_a_mount(write, tmp_path):
    write_two_shards(tmp_path / "out" / "scans.arrayrecord")
    for path in (tmp_path / "out").iterdir():
        write(f"a/b/{path.name}", path.read_bytes())
    write("a/other.arrayrecord", b"another file")
    local = ArrayRecordSource(str(tmp_path / "out" / "scans.arrayrecord"))
    for pattern in ("s3://data/a/b/scans.arrayrecord", "s3://data/a/b/scans-*.arrayrecord", "s3://data/*/b/scans*"):
        source = ArrayRecordSource(pattern)
        assert [int(source[index]["x"][0]) for index in range(6)] == [0, 1, 2, 10, 11, 12]
        assert source.fingerprint() == local.fingerprint()
        assert source.checksums().keys() == set(source.paths)
        lengths = source.field_lengths(["x"])
        assert lengths is not None and lengths["x"].tolist() == [2] * 6
    with pytest.raises(DataError, match=r"s3://data/none\*: no such file"):
        ArrayRecordSource("s3://data/none*")


@pytest.mark.parametrize("pattern", ["scans-*.arrayrecord", "scans-00001-of-00002.arrayrecord"])
def test_pattern_of_shards_uses_the_present_manifest(write, bucket, tmp_path, pattern):
    write_two_shards(tmp_path / "out" / "scans.arrayrecord")
    for path in (tmp_path / "out").iterdir():
        write(f"a/{path.name}", path.read_bytes())
    source = ArrayRecordSource(f"s3://data/a/{pattern}")
    assert source.checksums().keys() == set(source.paths) and source.field_lengths(["x"]) is not None
    bucket.write(f"a/scans.arrayrecord{MANIFEST}", None).result()
    assert not ArrayRecordSource(f"s3://data/a/{pattern}").checksums()


def test_incomplete_dataset_is_reported(write):
    write(f"a/scans.arrayrecord{MANIFEST}", RecordManifest({}, "stop", [None, None]).to_text().encode())
    write("a/scans-00000-of-00002.arrayrecord", b"a shard")
    for pattern in ("scans.arrayrecord", "scans-*.arrayrecord"):
        with pytest.raises(DataError, match=r"scans\.arrayrecord: 0 of 2 shards are written\. Run the same"):
            ArrayRecordSource(f"s3://data/a/{pattern}")


def test_file_is_downloaded_once_and_again_when_it_has_changed(write, tmp_path):
    write("x.rec", b"one")
    (path,) = map(Path, cached_files("s3://data/x.rec"))
    assert path == tmp_path / "cache" / "s3" / "data" / "x.rec" and path.read_bytes() == b"one"
    before = path.stat()
    cached_files("s3://data/x.rec")
    assert path.stat().st_ino == before.st_ino
    write("x.rec", b"two")
    cached_files("s3://data/x.rec")
    assert path.read_bytes() == b"two"
    path.write_bytes(b"")  # as after a crash of the machine
    cached_files("s3://data/x.rec")
    assert path.read_bytes() == b"two"
    for value in (b"3", b"4"):  # two versions do not fit into the cache together
        write("large.rec", value * 700_000)
        assert Path(cached_files("s3://data/large.rec")[0]).read_bytes() == value * 700_000
    write("dir/y[1].rec", b"brackets are literal")
    assert [Path(found).name for found in cached_files("s3://data/dir/y[1].rec")] == ["y[1].rec"]


@pytest.mark.parametrize("damage", damages.ALL)
def test_damaged_file_is_named_and_downloaded_again(write, damage, capsys):
    write("x.rec", b"content")
    (path,) = map(Path, cached_files("s3://data/x.rec"))
    for _ in range(2):
        cached_files("s3://data/x.rec")
    damage(path)
    cached_files("s3://data/x.rec")
    assert path.read_bytes() == b"content"
    text = f"warning: {path}: damaged file in the cache of a bucket, which is downloaded again: "
    assert capsys.readouterr().err.count(text) == 1


def test_least_recently_used_files_are_removed_and_files_in_use_stay(write):
    for name in "abc":
        write(f"{name}.rec", bytes(400_000))
    paths = {}
    for seconds, name in enumerate("ab"):
        (paths[name],) = map(Path, cached_files(f"s3://data/{name}.rec"))
        os.utime(bucket_cache._hidden(paths[name], "use"), (seconds, seconds))
    with pytest.raises(DataError, match=r"files in use need 0.00112 GiB, and the cache .* holds 0.000977. Set CONVOY_"):
        cached_files("s3://data/c.rec")
    assert paths["a"].exists() and paths["b"].exists()
    release_cache()
    cached_files("s3://data/c.rec")
    assert not paths["a"].exists() and paths["b"].exists()


def test_decompressed_copy_counts_and_goes_with_its_file(write):
    for name in "abc":
        write(f"{name}.rec", bytes(300_000))
    a, b = (Path(cached_files(f"s3://data/{name}.rec")[0]) for name in "ab")
    folder = a.parent / bucket_cache.INDEXES
    folder.mkdir()
    for name in ("a.rec", "b.rec"):
        (folder / f"{name}.tfrecord-2.plain").write_bytes(bytes(200_000))
    os.utime(bucket_cache._hidden(a, "use"), (0, 0))
    release_cache()
    cached_files("s3://data/c.rec")
    assert (a.exists(), b.exists()) == (False, True)
    assert [path.name for path in folder.iterdir()] == ["b.rec.tfrecord-2.plain"]


def test_saved_index_of_a_file_stays_as_long_as_the_file(write):
    for name in "abc":
        write(f"{name}.rec", bytes(400_000))
    (a,), (b,) = (map(Path, cached_files(f"s3://data/{name}.rec")) for name in "ab")
    folder = a.parent / bucket_cache.INDEXES
    folder.mkdir()
    for name in ("a.rec", "b.rec"):
        (folder / f"{name}.tfrecord-1.index").write_bytes(bytes(200_000))
    os.utime(bucket_cache._hidden(a, "use"), (0, 0))
    release_cache()
    cached_files("s3://data/c.rec")
    assert not a.exists() and b.exists()
    assert [path.name for path in folder.iterdir()] == ["b.rec.tfrecord-1.index"]


def test_file_that_is_larger_than_the_cache_removes_no_other_file(write, tmp_path):
    write("a.rec", b"small")
    write("big.rec", bytes((1 << 20) + 1))
    (path,) = map(Path, cached_files("s3://data/a.rec"))
    release_cache()
    with pytest.raises(DataError, match=r"s3://data: big.rec alone needs 0.000977 GiB, and the cache .* Set CONVOY_"):
        cached_files("s3://data/big.rec")
    assert path.exists()


def test_part_of_a_killed_download_is_removed(write, tmp_path):
    write("dir/a.rec", b"a")
    folder = tmp_path / "cache" / "s3" / "other"
    folder.mkdir(parents=True)
    (folder / ".b.rec.part").write_bytes(bytes(1 << 20))
    assert Path(cached_files("s3://data/dir/a.rec")[0]).read_bytes() == b"a"
    assert not (folder / ".b.rec.part").exists()


def test_files_in_use_by_another_process_are_not_removed(write, tmp_path):
    write_array_record(ArraySource({"x": np.arange(3)}), str(tmp_path / "a.arrayrecord"))
    write("a.arrayrecord", (tmp_path / "a.arrayrecord").read_bytes())
    write("big.rec", bytes(1 << 20))
    reader = subprocess.Popen(
        [sys.executable, "-c", READ, "s3://data/a.arrayrecord"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdin is not None and reader.stdout is not None
    try:
        assert reader.stdout.readline() == "3\n"
        with pytest.raises(DataError, match="files in use need"):
            cached_files("s3://data/big.rec")
    finally:
        reader.communicate("")
    assert reader.returncode == 0
    assert Path(cached_files("s3://data/big.rec")[0]).stat().st_size == 1 << 20
    assert not (tmp_path / "cache" / "s3" / "data" / "a.arrayrecord").exists()


def test_missing_bucket_and_wrong_settings_are_one_sentence(write, tmp_path, monkeypatch):
    with pytest.raises(
        DataError, match=r"s3://none/x.rec: cannot be read \(NOT_FOUND: NoSuchBucket.*Check that the bucket"
    ):
        cached_files("s3://none/x.rec")
    monkeypatch.setenv(bucket_cache.SIZE, "much")
    with pytest.raises(DataError, match="CONVOY_DATA_CACHE_GIB = much: allowed is a number of GiB"):
        cached_files("s3://data/x.rec")
    monkeypatch.setenv(bucket_cache.SIZE, "inf")
    with pytest.raises(DataError, match="CONVOY_DATA_CACHE_GIB = inf: allowed is a number of GiB"):
        cached_files("s3://data/x.rec")
    monkeypatch.setenv(bucket_cache.SIZE, "1")
    monkeypatch.setenv(bucket_cache.FOLDER, str(tmp_path / "other"))
    write("x/y.rec", b"content")
    (tmp_path / "other" / "s3" / "data").mkdir(parents=True)
    (tmp_path / "other" / "s3" / "data" / "x").touch()  # a file where the cache needs a folder
    with pytest.raises(DataError, match=r"CONVOY_DATA_CACHE = .*other: cannot be used: File exists\. Free space"):
        cached_files("s3://data/x/y.rec")
