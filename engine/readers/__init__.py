"""Readers: sources and streams of files of common formats, and decoders of their records.

Names are imported on first use, so that a reader loads only the library of its own format. `_MODULES` repeats the
imports below, which only type checkers execute; a test compares the two.
"""

from typing import TYPE_CHECKING

from engine import lazy_exports

if TYPE_CHECKING:
    from engine.readers.argoverse2_motion import Argoverse2Motion
    from engine.readers.argoverse2_sensor import Argoverse2Sensor
    from engine.readers.array_record import ArrayRecordSource
    from engine.readers.arrow import Arrow
    from engine.readers.decode_image import DecodeImage
    from engine.readers.hugging_face import HuggingFace
    from engine.readers.image_folder import ImageFolder
    from engine.readers.json_lines import JsonLines
    from engine.readers.kitti import KittiObject
    from engine.readers.mcap import Mcap
    from engine.readers.nuscenes import NuScenes
    from engine.readers.parquet import Parquet
    from engine.readers.tf_example import TFExample
    from engine.readers.tf_record import TFRecord
    from engine.readers.video import Video
    from engine.readers.waymo_scenario import WaymoScenario
    from engine.readers.web_dataset import WebDataset

__all__ = [
    "Argoverse2Motion",
    "Argoverse2Sensor",
    "ArrayRecordSource",
    "Arrow",
    "DecodeImage",
    "HuggingFace",
    "ImageFolder",
    "JsonLines",
    "KittiObject",
    "Mcap",
    "NuScenes",
    "Parquet",
    "TFExample",
    "TFRecord",
    "Video",
    "WaymoScenario",
    "WebDataset",
]

_MODULES = {
    "engine.readers.array_record": ("ArrayRecordSource",),
    "engine.readers.argoverse2_motion": ("Argoverse2Motion",),
    "engine.readers.argoverse2_sensor": ("Argoverse2Sensor",),
    "engine.readers.arrow": ("Arrow",),
    "engine.readers.decode_image": ("DecodeImage",),
    "engine.readers.hugging_face": ("HuggingFace",),
    "engine.readers.image_folder": ("ImageFolder",),
    "engine.readers.json_lines": ("JsonLines",),
    "engine.readers.kitti": ("KittiObject",),
    "engine.readers.mcap": ("Mcap",),
    "engine.readers.nuscenes": ("NuScenes",),
    "engine.readers.parquet": ("Parquet",),
    "engine.readers.tf_example": ("TFExample",),
    "engine.readers.tf_record": ("TFRecord",),
    "engine.readers.video": ("Video",),
    "engine.readers.waymo_scenario": ("WaymoScenario",),
    "engine.readers.web_dataset": ("WebDataset",),
}

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
