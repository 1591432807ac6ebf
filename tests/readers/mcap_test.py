import pickle
import shutil
import sys

import numpy as np
import pytest
from mcap.writer import CompressionType, IndexType  # pyright: ignore[reportMissingImports]

from engine.base.errors import DataError
from engine.data.bad_examples import TolerantBatches
from engine.data.batches import Batches
from engine.readers import Mcap
from tests.readers.mcap_files import START, write_log


def first_byte(data):
    return np.uint8(data[0])


def numbers(source):
    return [int(source[i]["/imu"]["i"]) for i in range(len(source))]


@pytest.fixture
def log(tmp_path):
    return write_log(tmp_path / "a.mcap")


WRITERS = {
    "zstd": dict(),
    "lz4": dict(compression=CompressionType.LZ4),
    "uncompressed": dict(compression=CompressionType.NONE),
    "without chunks": dict(use_chunking=False),
    "without an index": dict(index_types=IndexType.NONE, use_summary_offsets=False),
    "without a summary": dict(repeat_channels=False, repeat_schemas=False, use_statistics=False),
    "several channels": dict(channels=2),
}


@pytest.mark.parametrize("options", WRITERS.values(), ids=WRITERS)
def test_messages_are_those_that_the_library_wrote(tmp_path, options):
    source = Mcap(str(write_log(tmp_path / "a.mcap", **options)), "/imu")
    assert numbers(source) == list(range(20))
    found = source[7]
    assert found["/imu"]["xyz"].tolist() == [7, 1.5, 2]
    assert found["time"] == pytest.approx(0.07) and found["time"].shape == ()
    assert found["age"].tolist() == [0]
    assert (found["log"], found["log_time"]) == ("a.mcap", str(START + 70 * 10**6))


def test_example_holds_the_latest_message_of_each_topic(log):
    source = Mcap(str(log), ["/imu", "/camera", "/map"], {"/camera": first_byte})
    assert numbers(source) == list(range(10, 20))  # the map comes at 95 ms
    assert [int(source[i]["/camera"]) for i in range(5)] == [2, 3, 3, 3, 4]
    assert source[0]["/map"]["name"] == "a"
    assert source[0]["age"].tolist() == pytest.approx([0, 0.025, 0.005])
    assert source.paths == [str(log)]
    recent = Mcap(str(log), ["/imu", "/camera"], {"/camera": "tests.readers.mcap_test.first_byte"}, max_age_s=0.006)
    assert numbers(recent) == [2, 5, 8, 11, 14, 17]
    same_time = Mcap(str(log), ["/camera", "/imu"], {"/camera": first_byte})
    assert [int(same_time[i]["/imu"]["i"]) for i in range(3)] == [1, 4, 7]


def test_logs_are_joined_one_by_one(tmp_path):
    for name, first in (("b", 20), ("a", 0)):
        write_log(tmp_path / f"{name}.mcap", first=first)
    source = pickle.loads(pickle.dumps(Mcap(f"{tmp_path}/*.mcap", ["/imu", "/map"])))
    assert numbers(source) == [*range(10, 20), *range(30, 40)]
    batches = Batches(source, 4, 5, True)
    rows = np.concatenate([batches[n].examples["/imu"]["i"] for n in range(5)])
    assert sorted(rows.tolist()) == numbers(source)


def test_unknown_topics_and_encodings_are_named(log, tmp_path):
    with pytest.raises(DataError, match=r"topics: no log has '/imv'. Did you mean /imu\? Found: /camera, /imu, /map"):
        Mcap(str(log), "/imv")
    with pytest.raises(
        DataError, match=r"topic '/camera' is encoded as raw, which needs a decoder: decoders=.'/camera'"
    ):
        Mcap(str(log), "/camera")
    with pytest.raises(DataError, match="none of 1 logs has an example with a message of each of /map, /camera"):
        Mcap(str(log), ["/map", "/camera"], {"/camera": first_byte}, max_age_s=0.001)
    with pytest.raises(DataError, match="name at least one topic, and each once"):
        Mcap(str(log), ["/imu", "/imu"])
    (tmp_path / "x.mcap").write_bytes(b"no log")
    with pytest.raises(DataError, match=r"x.mcap: no MCAP log"):
        Mcap(str(tmp_path / "x.mcap"), "/imu")


def test_log_that_ends_early_has_one_bad_example_at_its_end(log):
    log.write_bytes(log.read_bytes()[: log.stat().st_size // 2])  # as after a crash: without a summary
    source = Mcap(str(log), "/imu")
    good = len(source) - 1
    assert 3 < good < 20
    assert [int(source[i]["/imu"]["i"]) for i in range(good)] == list(range(good))
    with pytest.raises(DataError, match=r"a.mcap: the log is damaged or ends at byte \d+, .* mcap recover"):
        source[good]


def test_damaged_chunk_makes_its_messages_bad(log):
    source = Mcap(str(log), "/imu")
    chunks = source._logs[0].chunk
    chunk = int(chunks[len(chunks) // 2])
    stored = bytearray(log.read_bytes())
    stored[chunk + 60] ^= 255
    log.write_bytes(stored)
    source = Mcap(str(log), "/imu")
    bad = [i for i in range(20) if int(source._logs[0].chunk[source._logs[0].chosen[i, 0]]) == chunk]
    assert 0 < len(bad) < 10
    found = TolerantBatches(Batches(source, 20, 0, False))[0]
    assert [example.address for example in found.bad] == bad
    assert "message of /imu at" in found.bad[0].error and f"the chunk at byte {chunk} cannot" in found.bad[0].error


def test_damaged_log_is_read_or_raises_a_data_error(log):
    stored, rng = log.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(stored)
        for position in rng.integers(8, len(stored), 3):
            damaged[position] = rng.integers(256)
        log.write_bytes(damaged[: len(stored) - rng.integers(0, 400)])
        try:
            source = Mcap(str(log), "/imu")
        except DataError:
            continue
        for i in range(len(source)):
            try:
                source[i]
            except DataError as error:
                assert "a.mcap" in str(error)


def test_fingerprint_depends_on_content_and_topics_and_not_on_folder(log, tmp_path):
    first = Mcap(str(log), "/imu").fingerprint()
    (tmp_path / "copy").mkdir()
    copy = shutil.copy(log, tmp_path / "copy")
    assert Mcap(str(copy), "/imu").fingerprint() == first
    assert Mcap(str(copy), ["/imu", "/map"]).fingerprint() != first
    write_log(copy, first=1)
    assert Mcap(str(copy), "/imu").fingerprint() != first


def test_missing_library_is_named_with_its_extra(log, monkeypatch):
    monkeypatch.setitem(sys.modules, "mcap", None)
    with pytest.raises(DataError, match=r"MCAP logs need mcap.*pip install .*\[mcap\]'"):
        Mcap(str(log), "/imu")
