import fcntl
import itertools
import json
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from engine.base.errors import ConfigError, ConvoyError, DataError
from engine.base.files import lock
from engine.data.adapt import as_source
from engine.data.ragged.padded import Bucketed
from engine.data.source import ArraySource, BaseSource, limited
from engine.datasets import write
from engine.datasets.check import check_dataset
from engine.datasets.output_lock import open_locked
from engine.datasets.write import default_shards, write_dataset
from engine.readers.array_record import ArrayRecordSource
from engine.readers.record_manifest import LOCK, SEQUENCES, SIDECARS, lengths_path, manifest_path, save_lengths
from tests import runs
from tests.data.streams.counting import Counting
from tests.datasets.scans import Scans, content

pytestmark = pytest.mark.multiprocess

KILL_S = 180.0  # longest wait for a process; shorter than that for a gate


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The scans in four shards."""
    out = tmp_path_factory.mktemp("written") / "scans.arrayrecord"
    write_dataset(Scans(), out, shards=4, processes=1)
    return out


def wait_until(condition):
    end = time.monotonic() + KILL_S
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def is_unlocked(out):
    """Whether no process holds the lock of an output; those of a killed command end a moment after it."""
    with open(out.with_name(out.name + LOCK), "w") as file:
        return lock(file, wait=False)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] not in "ZX"
    except OSError:
        return False


def test_killed_write_continues_to_the_same_bytes_with_another_number_of_processes(written, tmp_path):
    gate, folder = tmp_path / "gate", tmp_path / "data"
    gate.mkdir()
    out = folder / "scans.arrayrecord"
    data = [f"--data.target={Scans.__module__}.Scans", f"--data.gate={gate}", "--data.wait_from=40"]
    process = runs.start("data", "write", *data, f"--out={out}", "--shards=4", "--processes=2")
    try:
        wait_until(lambda: not process.poll() and len(list(folder.glob("*-of-00004.arrayrecord"))) >= 2)
        wait_until(lambda: _finished(out))
    finally:
        child = runs.child(process.pid)
        process.kill()
        output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output
    killed = [int(path.name) for path in gate.iterdir()] + ([child] if child else [])
    wait_until(lambda: not any(map(is_running, killed)) and is_unlocked(out))
    with pytest.raises(DataError, match=r"scans.arrayrecord: [1-3] of 4 shards are written. Run the same"):
        ArrayRecordSource(str(out))
    assert list(folder.glob("*.unfinished"))
    recorded = _finished(out)
    before = {name: (folder / name).stat().st_mtime_ns for name in recorded}

    (gate / "open").touch()
    source = Scans(gate=str(gate), wait_from=40)
    done = []
    found = write_dataset(source, out, processes=1, on_progress=lambda done_, total: done.append((done_, total)))
    assert found.kept == len(before) >= 1 and found.examples == 60 and done[-1] == (60, 60)
    assert {name: (folder / name).stat().st_mtime_ns for name in recorded} == before
    assert content(folder) == content(written.parent)


def _finished(out):
    """The names of the shards in the manifest."""
    try:
        return [shard["file"] for shard in json.loads(manifest_path(out).read_text())["shards"] if shard is not None]
    except OSError:
        return []


def test_manifest_is_saved_rarely_and_lists_all_finished_shards_after_an_error(tmp_path, monkeypatch):
    out, saved, save = tmp_path / "scans.arrayrecord", [], write.save_manifest
    monkeypatch.setattr(write, "SAVE_S", 1000.0)
    monkeypatch.setattr(write, "save_manifest", lambda out, manifest: saved.append(manifest) or save(out, manifest))
    with pytest.raises(DataError, match="scan 50 is damaged"):
        write_dataset(Scans(bad=[50]), out, shards=60, processes=1)
    assert len(_finished(out)) == 50 and len(saved) == 3  # at the begin, after the first shard, and at the end
    monkeypatch.setattr(Scans, "fingerprint", lambda self: "60 scans without (50,)")
    assert write_dataset(Scans(), out, processes=1).kept == 50
    assert len(ArrayRecordSource(str(out))) == 60


def test_examples_and_lengths_are_read_back(written):
    source, expected = ArrayRecordSource(str(written)), Scans()
    assert len(source) == 60
    for index in (0, 14, 15, 59):
        assert source[index]["points"].tolist() == expected[index]["points"].tolist()
        assert source[index]["name"] == expected[index]["name"]
    lengths = source.field_lengths(["points"])
    assert lengths is not None and lengths["points"].tolist() == [index % 9 + 1 for index in range(60)]
    assert source.field_lengths(["label"]) is None
    part = ArrayRecordSource([str(written.with_name(f"scans-0000{n}-of-00004.arrayrecord")) for n in (3, 1)])
    found = part.field_lengths(["points"])
    assert found is not None and found["points"].tolist() == [n % 9 + 1 for n in (*range(45, 60), *range(15, 30))]
    assert len(ArrayRecordSource(str(written.with_name("scans*")))) == 60


def test_ragged_sources_read_no_example_to_measure_lengths(written, monkeypatch):
    source = ArrayRecordSource(str(written))
    with monkeypatch.context() as patch:
        patch.setattr(ArrayRecordSource, "__getitem__", lambda self, index: pytest.fail("an example was read"))
        whole, part = Bucketed(source, [4, 9], "points"), Bucketed(limited(source, 10), [4, 9], "points")
        assert whole.measured and part.measured
    assert whole.lengths().tolist() == Bucketed(Scans(), [4, 9], "points").lengths().tolist()
    assert part.lengths().tolist() == [*range(1, 10), 1]

    class Cropped(ArrayRecordSource):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return {**example, "points": example["points"][:2]}

    assert Bucketed(Cropped(str(written)), [1, 2], "points").lengths().max() == 2


@pytest.mark.parametrize(
    ("source", "arguments", "text"),
    [
        (Scans(61), {}, "is a dataset whose examples is 60, not 61"),
        (Scans(bad=[0]), {"on_error": "stop"}, "is a dataset whose content is"),
        (Scans(), {"shards": 5}, "has 4 shards, not 5"),
        (Scans(), {"on_error": "skip"}, "was written with on_error=stop, not skip"),
    ],
)
def test_another_source_or_other_arguments_are_refused(written, source, arguments, text):
    before = content(written.parent)
    with pytest.raises(DataError, match=f"scans.arrayrecord: {text}.*Choose another path, or replace it with --over"):
        write_dataset(source, written, processes=1, **arguments)
    assert content(written.parent) == before


def test_write_with_more_shards_than_examples_continues(tmp_path):
    out = tmp_path / "scans.arrayrecord"
    assert len(write_dataset(Scans(3), out, shards=5, processes=1).paths) == 3
    assert write_dataset(Scans(3), out, shards=5, processes=1).kept == 3


def test_damaged_shard_is_written_again_and_the_others_are_kept(written, tmp_path):
    out = tmp_path / written.name
    for name, data in content(written.parent).items():
        (tmp_path / name).write_bytes(data)
    shard = tmp_path / "scans-00002-of-00004.arrayrecord"
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    assert write_dataset(Scans(), out, processes=1).kept == 3
    assert content(tmp_path) == content(written.parent)
    shard.unlink()
    assert write_dataset(Scans(), out, processes=1).kept == 3
    assert content(tmp_path) == content(written.parent)
    assert write_dataset(Scans(), out, processes=1).kept == 4


@pytest.mark.parametrize("damage", ["removed", "damaged", "shorter"])
def test_length_index_is_repaired(written, tmp_path, damage):
    out = tmp_path / written.name
    for name, data in content(written.parent).items():
        (tmp_path / name).write_bytes(data)
    index = lengths_path(out)
    if damage == "removed":
        index.unlink()
    elif damage == "damaged":
        index.write_bytes(index.read_bytes()[:-40])
    else:
        save_lengths(index, {"points": np.ones(59, np.int32)})
    write_dataset(Scans(), out, processes=1)
    assert content(tmp_path) == content(written.parent)
    assert write_dataset(Scans(), out, processes=1).kept == 4


def test_shard_that_loses_an_example_does_not_shift_the_lengths_of_the_others(tmp_path):
    class Same(Scans):
        def fingerprint(self):
            return "the same"

    out = tmp_path / "scans.arrayrecord"
    write_dataset(Same(), out, shards=4, processes=1, on_error="skip")
    (tmp_path / "scans-00001-of-00004.arrayrecord").unlink()
    found = write_dataset(Same(bad=[20]), out, processes=1, on_error="skip")
    assert (found.kept, found.examples) == (3, 59)
    lengths = ArrayRecordSource(str(out)).field_lengths(["points"])
    assert lengths is not None and lengths["points"].tolist() == [n % 9 + 1 for n in range(60) if n != 20]


def test_bad_examples_are_left_out_and_listed_with_skip(tmp_path):
    out = tmp_path / "scans.arrayrecord"
    found = write_dataset(Scans(bad=[3, 40]), out, shards=2, processes=1, on_error="skip")
    assert found.examples == 58 and found.bad.keys() == {3, 40}
    assert found.bad[3].startswith("OSError: scan 3 is damaged")
    source = ArrayRecordSource(str(out))
    assert [source[index]["name"] for index in (2, 3, 38, 57)] == ["scan 2", "scan 4", "scan 39", "scan 59"]
    lengths = source.field_lengths(["points"])
    assert lengths is not None and len(lengths["points"]) == 58 and lengths["points"][3] == 5
    with pytest.raises(DataError, match=r"11 of the examples 0 to 10 are bad, and data.on_error=skip allows 10%"):
        write_dataset(Scans(bad=range(20)), tmp_path / "b.arrayrecord", processes=1, on_error="skip")
    with pytest.raises(DataError, match=r"Example 3 of .*Scans: OSError: scan 3 is damaged .*data.on_error=skip"):
        write_dataset(Scans(bad=[3]), tmp_path / "c.arrayrecord", processes=1)


def test_temporary_files_of_a_killed_write_are_removed(tmp_path):
    out = tmp_path / "a.arrayrecord"
    own = ["a-00000-of-00002.arrayrecord.7.unfinished", "a.arrayrecord.7.unfinished", "a.arrayrecord.lengths"]
    own += [".a-00000-of-00002.arrayrecord.lengths.7f.tmp", ".a.arrayrecord.lengths.npz.7f.tmp"]
    own += [".a.arrayrecord.manifest.json.7-8.tmp", "a-00001-of-00002.arrayrecord.names"]
    own += [".a.arrayrecord.names.json.gz.7-8.tmp", ".a.arrayrecord.lineage.json.7-8.tmp"]
    others = ["ab.arrayrecord.7.unfinished", ".ab.arrayrecord.lengths.npz.7f.tmp", "a.arrayrecord.tmp"]
    for name in (*own, *others):
        (tmp_path / name).touch()
    write_dataset(Scans(2), out, processes=1)
    kept = [suffix for suffix in SIDECARS if suffix not in (LOCK, SEQUENCES)]
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.arrayrecord", *(f"a.arrayrecord{suffix}" for suffix in kept), *others,
    }  # fmt: skip


def test_full_disk_is_one_sentence_and_the_write_continues(tmp_path):
    rng = np.random.default_rng(0)
    source = ArraySource({"x": rng.integers(0, 256, (64, 16_384)).astype(np.uint8)})
    out = tmp_path / "a.arrayrecord"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DataError, match=r"a.*arrayrecord: cannot be written: File too large. Choose another path"):
            write_dataset(source, out, shards=2, processes=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["a.arrayrecord.manifest.json"]
    write_dataset(source, out, processes=1)
    assert ArrayRecordSource(str(out))[63]["x"].tolist() == source[63]["x"].tolist()


def test_second_writer_of_the_same_dataset_is_refused(tmp_path):
    out = tmp_path / "a.arrayrecord"
    with open(tmp_path / "a.arrayrecord.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process writes this dataset"):
            write_dataset(Scans(), out, processes=1)


def test_lock_of_a_file_that_its_holder_removes_is_taken_again(tmp_path, monkeypatch):
    path, locked = tmp_path / "a.lock", []

    def removed_at_first(file, operation):
        if not locked:
            path.unlink()
        locked.append(operation)

    monkeypatch.setattr(fcntl, "flock", removed_at_first)
    with open_locked(path) as file:
        assert len(locked) == 2 and os.path.samestat(os.fstat(file.fileno()), path.stat())


def test_default_number_of_shards_follows_the_size_of_the_examples():
    class Large(BaseSource):
        def __init__(self, count):
            self.count = count

        def __len__(self):
            return self.count

        def __getitem__(self, index):
            return {"x": np.zeros(1 << 20, np.uint8)}

    assert [default_shards(Large(n)) for n in (1, 60, 100, 640, 10**6)] == [1, 1, 2, 11, 1024]
    assert default_shards(Scans()) == 1


def test_stream_is_written_in_order_in_one_reading(tmp_path):
    stream, expected = Counting([90, 50, 60]), as_source(Counting([90, 50, 60]), "data")
    one, two = tmp_path / "one.arrayrecord", tmp_path / "two.arrayrecord"
    assert write_dataset(stream, one, shards=3).examples == 200
    assert stream.reads < 300  # also the first examples, for the fingerprint and the size
    write_dataset(Counting([90, 50, 60]), two, shards=3, processes=2)
    for found in (ArrayRecordSource(str(one)), ArrayRecordSource(str(two))):
        assert [found[n] for n in range(200)] == [expected[n] for n in range(200)]


def test_stream_that_cannot_be_read_on_ends_the_write_also_with_skip(tmp_path):
    class Damaged(Counting):
        def open(self, shard, position):
            yield from itertools.islice(super().open(shard, position), 20)
            raise OSError("no such block")

    with pytest.raises(ConvoyError, match="Damaged cannot be read at its example 20: OSError: no such block") as error:
        write_dataset(Damaged([40]), tmp_path / "a.arrayrecord", on_error="skip")
    assert error.value.kind == "DataError"
    with pytest.raises(ConvoyError, match="Damaged cannot be read at its example 20: OSError: no such block"):
        check_dataset(Damaged([40]))


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="shards = 0: allowed is a whole number from 1"):
        write_dataset(Scans(), tmp_path / "a", shards=0)
    with pytest.raises(DataError, match="Scans: no examples"):
        write_dataset(Scans(0), tmp_path / "a")
    with pytest.raises(DataError, match=r"every example is bad. The first: OSError: scan 0"):
        write_dataset(Scans(2, bad=[0, 1]), tmp_path / "a", on_error="skip")
    with pytest.raises(DataError, match=r"is a folder. Name a file in it, such as .*scenes\.arrayrecord"):
        write_dataset(Scans(), tmp_path, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written: .*Choose another path"):
        write_dataset(Scans(), tmp_path / "file" / "a")
    assert os.path.exists(tmp_path / "file")
