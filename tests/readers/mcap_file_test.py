import pickle

import pytest

from engine.base.errors import DataError
from engine.data.file_states import FileStates
from engine.readers import mcap_file
from engine.readers.mcap_file import Messages, build_index
from engine.readers.record_files import RecordFiles
from tests.readers.mcap_files import write_log


@pytest.fixture
def path(tmp_path):
    return str(write_log(tmp_path / "a.mcap"))


def read_all(messages, index, times):
    rows = zip(*(index[name].tolist() for name in ("chunk", "offset", "time")), strict=True)
    return [messages.read(0, chunk, offset) for chunk, offset, time in rows if time in times]


def test_messages_are_in_the_order_of_their_log_times(path):
    index = build_index(path)
    assert (index["time"][1:] >= index["time"][:-1]).all()
    assert len(set(index["chunk"].tolist())) > 3
    assert index["topic"].tolist() == [b"/imu", b"/camera", b"/map"]
    assert index["damage"].size == 0


def test_few_chunks_are_kept_and_a_pickled_copy_reads_again(path, monkeypatch):
    index = build_index(path)
    messages, plain, positions = Messages(RecordFiles([path], [1], FileStates([path]))), mcap_file.decompressed, []

    def recorded(content, position):
        positions.append(position)
        return plain(content, position)

    monkeypatch.setattr(mcap_file, "decompressed", recorded)
    times = set(index["time"].tolist())
    expected = read_all(messages, index, times)
    assert read_all(messages, index, times) == expected
    chunks = set(positions)
    assert len(positions) == len(chunks) > 3
    monkeypatch.setattr(mcap_file, "CACHE_BYTES", 500)
    copy = pickle.loads(pickle.dumps(messages))
    assert read_all(copy, index, times) == read_all(copy, index, times) == expected
    assert len(positions) > 2 * len(chunks) + 1


def test_place_without_a_message_is_a_data_error(path):
    index = build_index(path)
    messages = Messages(RecordFiles([path], [1], FileStates([path])))
    for offset in (10**6, -(10**18)):  # a damaged index holds any number of 64 bits
        with pytest.raises(DataError, match=r"there is no message. The log is damaged: try `mcap recover`"):
            messages.read(0, int(index["chunk"][0]), offset)
