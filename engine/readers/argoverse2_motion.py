"""Reads the motion-forecasting dataset of Argoverse 2: scenarios in Parquet, maps in JSON (extra `parquet`).

The layout and the columns are those of https://github.com/argoverse/av2-api.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from engine.base.errors import DataError, did_you_mean
from engine.data.examples import Example, evenly_spaced
from engine.data.source import SEPARATOR, BaseSource
from engine.readers.extras import import_extra
from engine.readers.files import FINGERPRINT_FILES, sampled_files
from engine.readers.fingerprints import digest
from engine.readers.parquet import ParquetFormat
from engine.readers.polylines import cut_polylines
from engine.readers.tables import Grouping, Tables
from engine.storage.mounts import local_path, shown

TYPES = ("vehicle", "pedestrian", "motorcyclist", "cyclist", "bus", "static", "background", "construction")
TYPES += ("riderless_bicycle", "unknown")
"""Types of tracks."""
LANE_TYPES = ("VEHICLE", "BIKE", "BUS")
MARKS = ("DASH_SOLID_YELLOW", "DASH_SOLID_WHITE", "DASHED_WHITE", "DASHED_YELLOW", "DOUBLE_SOLID_YELLOW")
MARKS += ("DOUBLE_SOLID_WHITE", "DOUBLE_DASH_YELLOW", "DOUBLE_DASH_WHITE", "SOLID_YELLOW", "SOLID_WHITE")
MARKS += ("SOLID_DASH_WHITE", "SOLID_DASH_YELLOW", "SOLID_BLUE", "NONE", "UNKNOWN")
CONSTANT = ("scenario_id", "city", "focal_track_id", "start_timestamp", "end_timestamp", "num_timestamps")
OF_STATES = ("track_id", "object_type", "object_category", "timestep", "observed", "position_x", "position_y")
OF_STATES += ("heading", "velocity_x", "velocity_y")


class Argoverse2Motion(BaseSource):
    """Source of the scenarios of Argoverse 2's motion-forecasting dataset, sorted by their names.

    An example has two ragged axes, so that `engine.Padded`, `engine.Bucketed` and `engine.Packed` apply:
    `fields=Argoverse2Motion.FIELDS`. `time` is 110 steps of 0.1 s. Positions are in metres in the frame of the city,
    and are stored as float64: subtract an origin before they become float32.

    | entry | shape | content |
    |---|---|---|
    | `scenario_id`, `city` | text | identifier, name of the city |
    | `timestamps` | float64 `[time]` | seconds since the first step |
    | `current_time_index` | int32 | last step of the history |
    | `focal_track_index`, `sdc_track_index` | int32 | track to predict, and the vehicle's own; -1 if it is missing |
    | `track_name` | text `[tracks]` | identifier |
    | `track_type` | int8 `[tracks]` | number in `TYPES` |
    | `track_category` | int8 `[tracks]` | 0 fragment, 1 unscored, 2 scored, 3 focal |
    | `track_position` | float64 `[tracks, time, 2]` | centre of the box |
    | `track_heading` | float32 `[tracks, time]` | radians, counter-clockwise from the x axis |
    | `track_velocity` | float32 `[tracks, time, 2]` | metres per second |
    | `track_valid` | bool `[tracks, time]` | whether the state is known |
    | `map_points` | float64 `[polylines, points, 3]` | map features, cut into pieces of at most `points` points |
    | `map_valid` | bool `[polylines, points]` | whether the point exists |
    | `map_kind` | int8 `[polylines]` | kind of the feature, see below |
    | `map_type` | int8 `[polylines]` | of a centerline in `LANE_TYPES`, of a boundary of a lane in `MARKS`, else -1 |
    | `map_id` | int64 `[polylines]` | identifier of the lane, crossing or area |
    | `map_intersection` | bool `[polylines]` | whether the lane is in an intersection |

    `map_kind` is 0 for the centerline of a lane, 1 for its left and 2 for its right boundary, 3 for an edge of a
    pedestrian crossing, and 4 for the boundary of a drivable area, which ends at its first point.
    """

    FIELDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "tracks": (
            *("track_type", "track_category", "track_position", "track_heading", "track_velocity", "track_valid"),
        ),
        "map": ("map_points", "map_valid", "map_kind", "map_type", "map_id", "map_intersection"),
    }
    """Axis -> its entries without text, as the argument `fields` of `engine.Padded`."""

    def __init__(self, folder: str, split: str = "train", parts: Sequence[str] = ("tracks", "map"), points: int = 20):
        """Lists the scenarios of a folder.

        Args:
            folder: path or bucket address of the folder with `train`, `val` and `test`.
            split: name of the folder of the scenarios.
            parts: which of "tracks" and "map" to read.
            points: points of a polyline.

        Raises:
            DataError: an argument is invalid, there are no scenarios, or pyarrow is missing.
        """
        import_extra("pyarrow.parquet", "parquet", "Files of Argoverse 2")
        if unknown := [part for part in parts if part not in self.FIELDS]:
            raise DataError(
                f"parts: found {unknown[0]!r}, allowed: tracks, map.{did_you_mean(unknown[0], self.FIELDS)}"
            )
        if points < 1:
            raise DataError(f"points = {points}: allowed are 1 and more points of a polyline.")
        self.folder = os.path.join(local_path(os.path.expanduser(folder)), split)
        names = sorted(os.listdir(self.folder)) if os.path.isdir(self.folder) else []
        self.names = [name for name in names if os.path.exists(self._file(name, "scenario_{}.parquet"))]
        self.known_names = {"scenario_id": self.names}
        """Names of the scenarios."""
        if not self.names:
            raise DataError(f"{folder}: no {split}/NAME/scenario_NAME.parquet. Correct the path or `split`.")
        self._parts, self._points = tuple(parts), points
        columns = (*CONSTANT, *OF_STATES)
        paths = [self._file(name, "scenario_{}.parquet") for name in self.names]
        self._tables = Tables(paths, ParquetFormat(), Grouping(one_per_file=True, constant=CONSTANT), columns=columns)
        self.file_states = self._tables.file_states

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        """Returns a scenario. Raises DataError, which names the file that cannot be read."""
        table, example = self._tables[index], {}
        try:
            example = _scenario(table)
            example |= _tracks(table, len(example["timestamps"])) if "tracks" in self._parts else {}
        except (IndexError, ValueError) as error:
            path = shown(self._tables.paths[index])
            raise DataError(f"{path}: no scenario of Argoverse 2: {error}. Copy it again.") from error
        if "map" in self._parts:
            path = self._file(self.names[index], "log_map_archive_{}.json")
            try:
                example |= _map(json.loads(Path(path).read_bytes()), self._points)
            except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
                what = f"{type(error).__name__}: {error}"
                raise DataError(f"{shown(path)}: no map of Argoverse 2: {what}. Copy it again.") from error
        return example

    def fingerprint(self) -> str:
        """Returns the number of scenarios, hashes of their names and of samples of some files, and what is read."""
        chosen = [self.names[index] for index in evenly_spaced(len(self), FINGERPRINT_FILES)]
        maps = [self._file(name, "log_map_archive_{}.json") for name in chosen] if "map" in self._parts else []
        samples = sampled_files([self._file(name, "scenario_{}.parquet") for name in chosen])
        samples += sampled_files([path for path in maps if os.path.exists(path)])
        parts = [f"{len(self)} scenarios", f"names {digest(self.names)}", f"samples {digest(samples)}"]
        closed = ["areas closed"] if "map" in self._parts else []  # those of version 0.2 were open
        return SEPARATOR.join([*parts, f"parts {', '.join(self._parts)}", f"points {self._points}", *closed])

    def _file(self, name: str, pattern: str) -> str:
        return os.path.join(self.folder, name, pattern.format(name))


def _scenario(table: Any) -> dict[str, Any]:
    start, end = int(table["start_timestamp"]), int(table["end_timestamp"])
    names = _track_names(table)
    observed = table["timestep"][table["observed"]]
    return {
        "scenario_id": table["scenario_id"],
        "city": table["city"],
        "timestamps": np.linspace(0, (end - start) * 1e-9, int(table["num_timestamps"])),
        "current_time_index": np.array(observed.max() if len(observed) else -1, np.int32),
        "focal_track_index": _number(names, table["focal_track_id"]),
        "sdc_track_index": _number(names, "AV"),
    }


def _track_names(table: Any) -> list[str]:
    """Returns the identifiers of the tracks, in the order of the rows."""
    return list(dict.fromkeys(table["track_id"]))


def _number(names: list[str], name: str) -> np.ndarray:
    return np.array(names.index(name) if name in names else -1, np.int32)


def _tracks(table: Any, times: int) -> dict[str, Any]:
    names = _track_names(table)
    numbers = {name: number for number, name in enumerate(names)}
    track, time = np.array([numbers[name] for name in table["track_id"]], np.int64), table["timestep"]
    first = np.unique(track, return_index=True)[1]
    if time.min() < 0:
        raise ValueError(f"timestep {time.min()}")

    def states(columns: Sequence[str], dtype: type) -> np.ndarray:
        found = np.zeros((len(names), times, len(columns)), dtype)
        found[track, time] = np.stack([table[column] for column in columns], axis=-1)
        return found

    valid = np.zeros((len(names), times), bool)
    valid[track, time] = True
    types = [TYPES.index(name) for name in table["object_type"][first]]
    return {
        "track_name": np.array(names, object),
        "track_type": np.array(types, np.int8),
        "track_category": table["object_category"][first].astype(np.int8),
        "track_position": states(("position_x", "position_y"), np.float64),
        "track_heading": states(("heading",), np.float32)[..., 0],
        "track_velocity": states(("velocity_x", "velocity_y"), np.float32),
        "track_valid": valid,
    }


def _map(archive: dict[str, Any], size: int) -> dict[str, np.ndarray]:
    """Returns the features of a map, cut into polylines of at most `size` points."""
    features: list[tuple[list[dict[str, float]], int, int, int, bool]] = []  # points, kind, type, id, intersection
    for lane in archive["lane_segments"].values():
        of = (int(lane["id"]), bool(lane["is_intersection"]))
        if "centerline" in lane:  # maps of the sensor dataset have none
            features.append((lane["centerline"], 0, LANE_TYPES.index(lane["lane_type"]), *of))
        for kind, side in ((1, "left"), (2, "right")):
            mark = MARKS.index(lane[f"{side}_lane_mark_type"])
            features.append((lane[f"{side}_lane_boundary"], kind, mark, *of))
    for crossing in archive.get("pedestrian_crossings", {}).values():
        features += [(crossing[edge], 3, -1, int(crossing["id"]), False) for edge in ("edge1", "edge2")]
    for area in archive["drivable_areas"].values():
        boundary = area["area_boundary"]
        features.append((boundary + boundary[:1], 4, -1, int(area["id"]), False))  # closed, as av2 does
    lines, *entries = zip(*features, strict=True) if features else [()] * 5
    points = np.array([[point["x"], point["y"], point["z"]] for line in lines for point in line], np.float64)
    counts = np.array([len(line) for line in lines], np.int64)
    cut, valid, pieces = cut_polylines(points.reshape(-1, 3), counts, size)
    kinds = (("map_kind", np.int8), ("map_type", np.int8), ("map_id", np.int64), ("map_intersection", bool))
    rest = {
        name: np.repeat(np.array(values, dtype), pieces) for (name, dtype), values in zip(kinds, entries, strict=True)
    }
    return {"map_points": cut, "map_valid": valid, **rest}
