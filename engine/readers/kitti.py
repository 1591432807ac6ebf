"""Reads KITTI's folders of object detection (extra `images`, if images are read)."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engine.base.errors import DataError, did_you_mean
from engine.data.examples import Example, evenly_spaced
from engine.data.source import SEPARATOR, BaseSource
from engine.readers.decode_image import DecodeImage
from engine.readers.files import FINGERPRINT_FILES, sampled_files
from engine.readers.fingerprints import digest
from engine.readers.lidar_files import read_points
from engine.storage.mounts import local_path, shown

FOLDERS = {"lidar": ("velodyne", ".bin"), "image": ("image_2", ".png"), "calib": ("calib", ".txt")}
FOLDERS |= {"boxes": ("label_2", ".txt")}
"""Part of an example -> its folder, and the ending of its files."""
TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
LABEL_NUMBERS = 14  # after the type: truncated, occluded, alpha, box [4], size [3], location [3], rotation_y


class KittiObject(BaseSource):
    """Source of the frames of KITTI's object detection, sorted by name.

    An example holds, by the parts that are read:

    - `frame`: the name, as text.
    - `lidar`: x, y, z, reflectance, float32 `[points, 4]`.
    - `image`: the left color camera, uint8 `[height, width, 3]`.
    - `calib`: the matrices by name, such as `P2` float32 `[3, 4]`.
    - of `boxes`: `box_type` int32 `[boxes]`, the number in `TYPES`, or -1 for DontCare; `box_name` as text; `box_2d`
      `[boxes, 4]` in pixels; `box_size` height, width, length and `box_bottom`, the center of its bottom, `[boxes, 3]`
      in metres in the frame of the camera; `box_yaw`, the angle about its y axis, which points down, `box_alpha`,
      `truncated` float32 and `occluded` int32 `[boxes]`.

    With `box_frame="lidar"`, boxes are in the frame of the lidar instead, without the DontCare regions, which have no
    place: `box_type`, `box_name`, `truncated`, `occluded`; `box_to_lidar` float32 `[boxes, 4, 4]` from the frame of the
    box, whose origin is its center and whose x axis points forward; and `box_size` length, width, height, `[boxes, 3]`.
    """

    def __init__(
        self,
        folder: str,
        split: str = "training",
        parts: Sequence[str] = ("lidar", "image", "calib", "boxes"),
        frames: Sequence[str] | None = None,
        size: Sequence[int] | None = None,
        box_frame: Literal["camera", "lidar"] = "camera",
    ):
        """Lists the frames of a folder.

        Args:
            folder: path or bucket address of the folder with `training` and `testing`.
            split: "training" or "testing". "testing" has no boxes: leave them out of `parts`.
            parts: what to read.
            frames: names of the frames, such as "000017". Default: all.
            size: (height, width) to which images are resized; `P2` and `box_2d` are scaled with them. KITTI's images
                differ in size by some pixels, so that batches need one.
            box_frame: the frame of the boxes. "lidar" reads the calibration, too.

        Raises:
            DataError: an argument is invalid, the folder has no frames, a part has no folder, or a library is missing.
        """
        unknown = [part for part in parts if part not in FOLDERS]
        if unknown or not parts:
            near = did_you_mean(unknown[0], FOLDERS) if unknown else ""
            raise DataError(f"parts = {tuple(parts)}: allowed are {', '.join(FOLDERS)}.{near}")
        if box_frame not in ("camera", "lidar"):
            raise DataError(f"box_frame = {box_frame!r}: allowed are 'camera' and 'lidar'.")
        self._in_lidar = box_frame == "lidar"
        self.folder = os.path.join(local_path(os.path.expanduser(folder)), split)
        self._parts, self._size = tuple(parts), None if size is None else tuple(size)
        self._decode = DecodeImage(size, "stretch") if "image" in parts else None
        first, ending = FOLDERS[parts[0]]
        found = Path(self.folder, first)
        listed = sorted(path.stem for path in found.iterdir() if path.suffix == ending) if found.is_dir() else []
        if not listed:
            raise DataError(f"{folder}: no {split}/{first}/*{ending}. Correct the path, `split` or `parts`.")
        for part in parts:
            if not os.path.isdir(os.path.join(self.folder, FOLDERS[part][0])):
                raise DataError(f"{folder}: no folder {split}/{FOLDERS[part][0]}. Remove {part!r} from `parts`.")
        self.frames = listed if frames is None else list(frames)
        self.known_names = {"frame": self.frames}
        """Names of the frames."""
        if missing := set(self.frames) - set(listed):
            raise DataError(f"{folder}: no frame {min(missing)} in {split}/{first}. Remove it from `frames`.")

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Example:
        """Returns a frame. Raises DataError, which names the file that cannot be read."""
        example: dict[str, Any] = {"frame": self.frames[index]}
        if "lidar" in self._parts:
            example["lidar"] = read_points(self._path("lidar", index), 4)
        if "calib" in self._parts:
            example["calib"] = _read_calib(self._path("calib", index))
        if "boxes" in self._parts:
            boxes = _read_boxes(self._path("boxes", index))
            example |= _in_lidar(boxes, _read_calib(self._path("calib", index))) if self._in_lidar else boxes
        if self._decode is not None:
            self._add_image(example, self._decode, self._path("image", index))
        return example

    def _path(self, part: str, index: int) -> str:
        folder, ending = FOLDERS[part]
        return os.path.join(self.folder, folder, self.frames[index] + ending)

    def _add_image(self, example: dict[str, Any], decode: DecodeImage, path: str) -> None:
        """Adds the image, and scales what is given in pixels."""
        try:
            data = Path(path).read_bytes()
            example["image"], (height, width) = decode(data), decode.stored_size(data)
        except (OSError, DataError) as error:
            raise DataError(f"{shown(path)}: {error}. Copy the file again.") from error
        scale = np.array(example["image"].shape[1::-1], np.float32) / np.array([width, height], np.float32)
        if "P2" in example.get("calib", {}):
            example["calib"]["P2"][:2] *= scale[:, None]
        if "box_2d" in example:
            example["box_2d"] *= np.tile(scale, 2)

    def fingerprint(self) -> str:
        """Returns the number of frames, hashes of their names and of samples of some files, and what is read."""
        chosen = [self._path(self._parts[0], i) for i in evenly_spaced(len(self), FINGERPRINT_FILES)]
        existing = [path for path in chosen if os.path.exists(path)]
        parts = [f"{len(self)} frames", f"names {digest(self.frames)}", f"samples {digest(sampled_files(existing))}"]
        parts += [f"parts {', '.join(self._parts)}", f"size {self._size}"]
        return SEPARATOR.join([*parts, "boxes of the lidar"] if self._in_lidar else parts)


def _lines(path: str) -> list[str]:
    try:
        return [line for line in Path(path).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{shown(path)}: cannot be read: {error}. Copy the file again.") from error


def _read_calib(path: str) -> dict[str, np.ndarray]:
    """Returns the matrices of a file with lines such as `P2: 12 numbers`, float32 `[3, 3]` or `[3, 4]`."""
    found = {}
    for line in _lines(path):
        name, _, text = line.partition(":")
        try:
            found[name] = np.array(text.split(), np.float32).reshape(3, -1)
        except ValueError as error:
            raise DataError(f"{shown(path)}: the line {name!r} is no matrix of 3 rows. Copy the file again.") from error
    return found


def _read_boxes(path: str) -> dict[str, np.ndarray]:
    names, rows = [], []
    for number, line in enumerate(_lines(path), 1):
        name, *values = line.split()
        try:
            rows.append([float(value) for value in values[:LABEL_NUMBERS]])
        except ValueError:
            rows.append([])
        if len(rows[-1]) != LABEL_NUMBERS or (name not in TYPES and name != "DontCare"):
            raise DataError(f"{shown(path)}: line {number} is no label of KITTI. Copy the file again.")
        names.append(name)
    table = np.array(rows, np.float32).reshape(-1, LABEL_NUMBERS)
    return {
        "box_type": np.array([TYPES.index(name) if name in TYPES else -1 for name in names], np.int32),
        "box_name": np.array(names, object) if names else np.empty(0, "U1"),
        "truncated": table[:, 0].copy(),
        "occluded": table[:, 1].astype(np.int32),
        "box_alpha": table[:, 2].copy(),
        "box_2d": table[:, 3:7].copy(),
        "box_size": table[:, 7:10].copy(),
        "box_bottom": table[:, 10:13].copy(),
        "box_yaw": table[:, 13].copy(),
    }


def _in_lidar(boxes: dict[str, np.ndarray], calib: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the boxes in the frame of the lidar, see KittiObject."""
    kept = boxes["box_type"] >= 0
    found = {name: boxes[name][kept] for name in ("box_type", "box_name", "truncated", "occluded")}
    size, yaw = boxes["box_size"][kept], boxes["box_yaw"][kept].astype(np.float64)
    to_camera, pose = np.eye(4), np.tile(np.eye(4), (len(size), 1, 1))
    to_camera[:3] = calib["R0_rect"].astype(np.float64) @ calib["Tr_velo_to_cam"]
    pose[:, :3, 3] = boxes["box_bottom"][kept]
    pose[:, 1, 3] -= size[:, 0] / 2  # y points down
    ahead, left = (np.stack([x, 0 * yaw, z], 1) for x, z in ((np.cos(yaw), -np.sin(yaw)), (np.sin(yaw), np.cos(yaw))))
    pose[:, :3, 0], pose[:, :3, 1], pose[:, :3, 2] = ahead, left, (0, -1, 0)
    found["box_to_lidar"] = (np.linalg.inv(to_camera) @ pose).astype(np.float32)
    return found | {"box_size": size[:, [2, 1, 0]]}
