import pickle
import shutil
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.bad_examples import TolerantBatches
from engine.data.batches import Batches
from engine.readers import Video
from tests.readers.video_files import CODECS, decoded, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def path(folder):
    return write_video(folder / "a.mp4")


@pytest.mark.parametrize("ending", list(CODECS))
def test_every_frame_in_any_order_equals_that_of_reading_from_the_begin(folder, ending):
    path = write_video(folder / f"frames.{ending}")
    source, expected = Video(path), decoded(path)
    assert len(source) == len(expected) == 40
    for index in np.random.default_rng(0).permutation(40).tolist():
        found = source[index]
        assert np.array_equal(found["frames"], expected[index][None]), index
        assert (found["first"], found["file"]) == (index, f"frames.{ending}")
        assert found["time_s"] == pytest.approx([index / 10], abs=1e-3)


def test_clips_have_the_given_frames_stride_and_step(path):
    expected = decoded(path)
    source = Video(path, frames=4, stride=3, step=5)
    assert [source[i]["first"] for i in range(len(source))] == [0, 5, 10, 15, 20, 25, 30]
    for index, clip in enumerate(source[i] for i in range(len(source))):
        assert np.array_equal(clip["frames"], np.stack(expected[5 * index : 5 * index + 10 : 3]))
    assert source[1]["time_s"] == pytest.approx([0.5, 0.8, 1.1, 1.4])
    assert [Video(path, frames=16)[i]["first"] for i in range(2)] == [0, 16]
    assert Video(path, size=(8, 10))[3]["frames"].shape == (1, 8, 10, 3)


def test_files_follow_each_other_and_short_ones_are_left_out(tmp_path, path):
    shutil.copy(path, tmp_path / "b.mp4")
    write_video(tmp_path / "c.mp4", frames=7)
    write_video(tmp_path / "d.mp4", frames=20)
    source = Video(str(tmp_path / "*.mp4"), frames=10)
    assert [source[i]["file"] for i in range(len(source))] == ["b.mp4"] * 4 + ["d.mp4"] * 2
    with pytest.raises(DataError, match=r"a clip spans 41 frames, but no file has more than 40. Use shorter clips"):
        Video(str(tmp_path / "*.mp4"), frames=41)


def test_pickled_copy_and_saved_index_give_the_same_clips(path):
    first = Video(path, frames=2)
    assert (Path(path).parent / ".convoy_index").is_dir()
    for other in (Video(path, frames=2), pickle.loads(pickle.dumps(first))):
        assert other.fingerprint() == first.fingerprint() != Video(path).fingerprint()
        assert np.array_equal(other[7]["frames"], first[7]["frames"])


def damaged(path: str, number: int) -> bytearray:
    """Returns the content of an MP4 file in which every byte of an encoded frame but its size is zero.

    The decoder notices this in any encoding. It would not notice each change of a few bytes: H.264 has no checksums.
    """
    with av.open(path) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
    begin, size = packet.pos, packet.size
    assert begin is not None
    data = bytearray(Path(path).read_bytes())
    data[begin + 4 : begin + size] = bytes(size - 4)
    return data


@pytest.mark.parametrize("number", [1, 3, 6])
def test_damage_of_a_frame_reaches_no_further_than_the_next_keyframe(tmp_path, path, number):
    (tmp_path / "a.mp4").write_bytes(damaged(path, number))
    source, expected, bad = Video(str(tmp_path / "a.mp4")), decoded(path), []
    for index in range(40):
        try:
            assert np.array_equal(source[index]["frames"][0], expected[index])
        except DataError:
            bad.append(index)
    assert bad and set(bad) <= set(range(10))


def test_damaged_frames_and_files_are_bad_examples(tmp_path, path):
    data = damaged(path, 3)
    (tmp_path / "a.mp4").write_bytes(data)
    (tmp_path / "b.mp4").write_bytes(data[: len(data) // 2])  # without the table of frames, which is at the end
    source = Video(str(tmp_path / "*.mp4"), frames=10)
    assert len(source) == 5  # the second file counts as one example
    with pytest.raises(DataError, match=r"b.mp4: frames 0 to 9 cannot be decoded: .*Replace the file"):
        source[4]
    batches = TolerantBatches(Batches(source, 5, 0, False))
    assert [example.address for example in batches[0].bad] == [0, 4]


def test_file_without_times_of_its_frames_is_refused(tmp_path):
    path = write_video(tmp_path / "a.avi", codec="libx264")
    with pytest.raises(DataError, match=r"a.avi.* convert it to MP4"):
        [Video(path)[i] for i in range(40)]


def test_other_files_wrong_arguments_and_a_missing_library_are_named(tmp_path, path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"something else" * 100)
    with pytest.raises(DataError, match=r"a.mp4: frames 0 to 0 cannot be decoded: .*Invalid data"):
        Video(str(tmp_path / "a.mp4"))
    with pytest.raises(DataError, match="frames=0, stride=1, step=0, size=None: allowed are 1 and more"):
        Video(path, frames=0)
    monkeypatch.setitem(sys.modules, "av", None)  # its import fails
    with pytest.raises(DataError, match=r"Video files need av.*: pip install .*\[video\]'"):
        Video(path)
