"""Worker processes read every format as the main process does: readers are pickled, and open their files again."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from engine.readers import HuggingFace, ImageFolder, KittiObject, Mcap, NuScenes, TFRecord, Video, WebDataset
from tests.readers.driving_files import write_kitti, write_nuscenes
from tests.readers.image_files import encoded, picture
from tests.readers.mcap_files import write_log
from tests.readers.table_files import FORMATS, labels, write
from tests.readers.video_files import write_video

FIXTURES = Path(__file__).parent / "fixtures"


def first_number(example):
    """Returns a number of an example that depends on its largest array."""
    arrays = [value for value in example.values() if isinstance(value, np.ndarray) and value.dtype.kind in "uif"]
    return int(max(arrays, key=lambda array: array.size).astype(np.float64).sum() % 100_003)


@pytest.mark.multiprocess
def test_batches_do_not_depend_on_the_number_of_workers(tmp_path):
    class Each:  # a local class, pickled by value for the workers
        """Examples of all readers, one after the other."""

        def __init__(self, sources):
            self.sources = sources

        def __len__(self):
            return 4 * len(self.sources)

        def __getitem__(self, index):
            source = self.sources[index % len(self.sources)]
            return {"label": np.int32(first_number(source[index // len(self.sources) % len(source)]))}

    (tmp_path / "images" / "car").mkdir(parents=True)
    for number in range(4):
        (tmp_path / "images" / "car" / f"{number}.jpg").write_bytes(encoded(picture(20, 30, seed=number), "JPEG"))
    table = pa.table({"x": [[i, 2 * i] for i in range(20)]})
    sources = [reader(write(tmp_path, kind, table)) for kind, reader in FORMATS.items()]
    sources += [
        HuggingFace(str(FIXTURES / "hugging_face")),
        ImageFolder(str(tmp_path / "images"), size=(8, 8)),
        Video(write_video(tmp_path / "a.mp4")),
        NuScenes(str(write_nuscenes(tmp_path / "nuscenes")), "v1.0-mini"),
        KittiObject(str(write_kitti(tmp_path / "kitti"))),
        TFRecord(shutil.copy(FIXTURES / "examples.tfrecord", tmp_path)),
        WebDataset(shutil.copy(FIXTURES / "samples.tar", tmp_path)),
        Mcap(str(write_log(tmp_path / "a.mcap")), ["/imu", "/map"]),
    ]
    whole = labels(Each(sources))
    assert len({label for batch in whole for label in batch}) > 20
    assert labels(Each(sources), workers=1) == labels(Each(sources), workers=2) == whole
