"""The reader of ETH/UCY: windows, splits, augmentation and errors, from generated files."""

import numpy as np
import pytest

from convoy_zoo.models.pedestrians.eth_ucy import FRAMES_PER_STEP, PLACES, AugmentedRows, Rows, Scenes, read, windows
from engine import DataError
from tests.models.pedestrians import recordings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return recordings.write(tmp_path_factory.mktemp("data") / "eth_ucy")


def track(pedestrian, first, count):
    """Rows of a pedestrian from frame `first` on; x is the frame, y the pedestrian."""
    frames = first + FRAMES_PER_STEP * np.arange(count)
    return np.stack([frames, np.full(count, pedestrian), frames, np.full(count, pedestrian)], axis=-1).astype(float)


def test_window_has_the_pedestrians_of_all_its_20_frames():
    rows = np.concatenate([track(1, 0, 22), track(2, 10, 20), track(3, 0, 19), track(4, 1000, 20)])
    found = windows(np.random.default_rng(0).permutation(rows))
    assert [(window[:, 0, 0].tolist(), window[:, 0, 1].tolist()) for window in found] == [
        ([0], [1]),
        ([10, 10], [1, 2]),
        ([20], [1]),
        ([1000], [4]),
    ]
    np.testing.assert_array_equal(found[1][1], track(2, 10, 20)[:, 2:])
    assert found[1].dtype == np.float32


def test_pedestrian_who_is_missing_in_a_frame_has_no_window_across_it():
    rows = track(1, 0, 40)
    assert len(windows(rows)) == 21
    assert len(windows(np.delete(rows, 15, axis=0))) == 40 - 16 - 19
    assert windows(track(1, 0, 10)) == []


def test_places_are_held_out(folder):
    everything = {place: Scenes(place, "test", folder) for place in PLACES}
    for place in PLACES:
        used = {
            scene["history"].tobytes() for split in ("train", "validation") for scene in scenes(place, split, folder)
        }
        tested = {scene["history"].tobytes() for scene in scenes(place, "test", folder)}
        assert used and tested and not used & tested
        assert len(everything[place]) == (22 if place == "univ" else 11)


def scenes(*args):
    source = Scenes(*args)
    return [source[index] for index in range(len(source))]


def test_training_scenes_of_a_place_are_those_of_the_train_files_of_all_others(folder):
    names = ("biwi_hotel", "students001", "students003", "crowds_zara01", "crowds_zara02", "crowds_zara03")
    expected = [windows(read(folder / "train" / f"{name}_train.txt")) for name in (*names, "uni_examples")]
    found = Scenes("eth", "train", folder)
    assert len(found) == sum(map(len, expected))
    np.testing.assert_array_equal(found[0]["future"], expected[0][0][:, 8:])


def test_windows_with_too_few_agents_are_left_out(folder):
    path = folder / "all" / "biwi_eth.txt"
    alone = path.read_text()
    try:
        np.savetxt(path, np.concatenate([track(1, 0, 22), track(2, 10, 20)]), "%.1f", "\t")
        assert Scenes("eth", "test", folder).lengths().tolist() == [1, 2, 1]
        assert Scenes("eth", "test", folder, min_agents=2).lengths().tolist() == [2]
    finally:
        path.write_text(alone)


def test_augmentation_rotates_mirrors_and_scales_each_window_on_its_own(folder):
    row = Rows("eth", "train", folder, length=24)[0]
    source, seen = AugmentedRows("eth", "train", folder, length=24), set()
    for seed in range(4):
        changed = source.transform(row, np.random.default_rng(seed))
        scales = []
        for segment in range(1, row["segment_ids"].max() + 1):
            of = row["segment_ids"] == segment
            before, after = (
                np.concatenate([x["history"][of], x["future"][of]], 1).reshape(-1, 2).astype(np.float64)
                for x in (row, changed)
            )
            matrix = np.linalg.lstsq(before, after, rcond=None)[0]
            np.testing.assert_allclose(before @ matrix, after, atol=1e-4)
            scale = np.sqrt(abs(np.linalg.det(matrix)))
            np.testing.assert_allclose(matrix @ matrix.T, scale**2 * np.eye(2), atol=1e-5)
            seen.add(np.sign(np.linalg.det(matrix)))
            scales.append(scale)
        assert len(set(np.round(scales, 4))) == len(scales) > 2
        assert min(scales) >= 1 / 1.5 and max(scales) <= 1.5
    assert seen == {-1, 1}


def test_missing_folder_is_an_error_that_names_the_source_and_the_place(tmp_path):
    with pytest.raises(DataError, match=r"biwi_eth.txt: not found\. .*Trajectron-plus-plus.* to .*nowhere"):
        Rows("eth", "test", str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("text", "message"), [("1\t2\t3\n", "has 3 columns"), ("1 x 3 4\n", "no table of numbers")])
def test_broken_file_is_an_error(text, message, tmp_path):
    (tmp_path / "file.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "file.txt")


def test_unknown_names_are_errors(folder):
    with pytest.raises(DataError, match="'zara3' is unknown: allowed are eth, hotel"):
        Scenes("zara3", "train", folder)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="'val' is unknown: allowed are train, validation, test"):
        Scenes("eth", "val", folder)  # pyright: ignore[reportArgumentType]
