import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.bad_examples import TolerantBatches
from engine.data.batches import Batches
from engine.readers import ImageFolder
from tests.readers.image_files import encoded, picture


@pytest.fixture
def folder(tmp_path):
    """12 images of three classes, in several formats and sizes."""
    for number in range(12):
        form, ending = [("JPEG", "jpg"), ("PNG", "PNG"), ("WEBP", "webp")][number % 3]
        path = tmp_path / "images" / ["car", "bus", "tram"][number % 3] / f"{number:02}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(20 + number, 30, seed=number), form))
    (tmp_path / "images" / "car" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


def test_example_holds_image_label_class_and_name(folder):
    source = ImageFolder(str(folder), size=(16, 16))
    assert source.classes == ["bus", "car", "tram"]
    assert source.names[:4] == ["bus/01.PNG", "bus/04.PNG", "bus/07.PNG", "bus/10.PNG"]
    found = source[5]
    assert (found["name"], found["class"], found["label"]) == ("car/03.jpg", "car", 1)
    assert found["image"].shape == (16, 16, 3)
    assert not np.may_share_memory(found["image"], source[5]["image"])  # `new_arrays`
    assert ImageFolder(str(folder))[5]["image"].shape == (23, 30, 3)


def test_classes_may_be_given_or_left_out(folder):
    source = ImageFolder(str(folder), classes=["tram", "none", "car", "bus"])
    assert [source[i]["label"] for i in (0, 4, 8)] == [3, 2, 0]
    assert sorted(ImageFolder(str(folder), labels=False)[0]) == ["image", "name"]
    with pytest.raises(DataError, match=r"bus/01.PNG: bus is none of the 2 `classes`. Add it"):
        ImageFolder(str(folder), classes=["car", "tram"])
    (folder / "loose.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"loose.jpg is in no folder of a class. Move it into one, or .*labels=False"):
        ImageFolder(str(folder))


def test_damaged_image_is_skipped(folder):
    whole = (folder / "car" / "03.jpg").read_bytes()
    (folder / "car" / "03.jpg").write_bytes(whole[: len(whole) // 2])
    source = ImageFolder(str(folder), size=(8, 8))
    with pytest.raises(DataError, match=r"car/03.jpg: the image of \d+ bytes is damaged.*Replace or remove the file"):
        source[5]
    batches = TolerantBatches(Batches(source, 4, 0, True))
    assert [bad.address for n in range(3) for bad in batches[n].bad] == [5]


def test_fingerprint_depends_on_files_classes_and_size(folder):
    def make(**settings):
        return ImageFolder(str(folder), **settings).fingerprint()

    first = make(size=(8, 8))
    assert make(size=(8, 8)) == first
    found = {first, make(), make(size=(8, 8), classes=["tram", "car", "bus"]), make(size=(8, 8), labels=False)}
    (folder / "car" / "00.jpg").write_bytes(encoded(picture(9, 9), "JPEG"))
    found.add(make(size=(8, 8)))
    (folder / "car" / "00.jpg").rename(folder / "bus" / "00.jpg")
    assert len(found | {make(size=(8, 8))}) == 6


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no images. Allowed endings: .bmp"):
        ImageFolder(str(tmp_path))
    with pytest.raises(DataError, match=r"none: no such folder. Correct the path"):
        ImageFolder(str(tmp_path / "none"))


def test_batches_resume_exactly(folder):
    batches = Batches(ImageFolder(str(folder), size=(8, 8)), 4, 3, True)
    again = Batches(ImageFolder(str(folder), size=(8, 8)), 4, 3, True)
    for n in (5, 2):
        assert np.array_equal(batches[n].examples["image"], again[n].examples["image"])
