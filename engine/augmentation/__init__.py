"""Random augmentations of driving scenes for training, keyed by the position of the example in the run.

Points, boxes, tracks, lines of maps, images and their calibration change together. `engine.augmented` applies a list of
augmentations to the examples of a source. The arrays are numpy arrays; importing this package loads no JAX.
"""

from engine.augmentation.crop import Crop
from engine.augmentation.mix_images import MixImages
from engine.augmentation.photometric import Photometric
from engine.augmentation.reader_scenes import (
    argoverse2_motion_scene,
    argoverse2_sensor_scene,
    kitti_scene,
    nuscenes_scene,
    waymo_scene,
)
from engine.augmentation.sample_objects import SampleObjects
from engine.augmentation.scene import Boxes, Camera, Lines, Points, Scene, Tracks
from engine.augmentation.sensor_dropout import SensorDropout
from engine.augmentation.step import Augmentation
from engine.augmentation.time_jitter import TimeJitter
from engine.augmentation.whole_scene import Flip, Rotate, Scale, Translate

__all__ = [
    "Augmentation",
    "Boxes",
    "Camera",
    "Crop",
    "Flip",
    "Lines",
    "MixImages",
    "Photometric",
    "Points",
    "Rotate",
    "SampleObjects",
    "Scale",
    "Scene",
    "SensorDropout",
    "TimeJitter",
    "Tracks",
    "Translate",
    "argoverse2_motion_scene",
    "argoverse2_sensor_scene",
    "kitti_scene",
    "nuscenes_scene",
    "waymo_scene",
]
