"""Decodes the `Scenario` message of the Waymo Open Motion Dataset, without Waymo's package and TensorFlow.

The fields are those of scenario.proto and map.proto of https://github.com/waymo-research/waymo-open-dataset.
"""

from collections.abc import Collection, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from engine.base.errors import DataError, did_you_mean
from engine.data.examples import Example
from engine.readers.polylines import cut_polylines
from engine.readers.protobuf_types import RecordType

# Enums are integers here: values of later versions of the dataset are kept.
_SCENARIO = RecordType(
    "waymo.open_dataset.Scenario",
    {
        "MapPoint": "double x = 1; double y = 2; double z = 3",
        "LaneCenter": "double speed_limit_mph = 1; int32 type = 2; repeated MapPoint polyline = 8",
        "RoadLine": "int32 type = 1; repeated MapPoint polyline = 2",
        "RoadEdge": "int32 type = 1; repeated MapPoint polyline = 2",
        "StopSign": "MapPoint position = 2",
        "Crosswalk": "repeated MapPoint polygon = 1",
        "SpeedBump": "repeated MapPoint polygon = 1",
        "Driveway": "repeated MapPoint polygon = 1",
        "MapFeature": "int64 id = 1; oneof LaneCenter lane = 3; oneof RoadLine road_line = 4; "
        "oneof RoadEdge road_edge = 5; oneof StopSign stop_sign = 7; oneof Crosswalk crosswalk = 8; "
        "oneof SpeedBump speed_bump = 9; oneof Driveway driveway = 10",
        "TrafficSignalLaneState": "int64 lane = 1; int32 state = 2; MapPoint stop_point = 3",
        "DynamicMapState": "repeated TrafficSignalLaneState lane_states = 1",
        "ObjectState": "double center_x = 2; double center_y = 3; double center_z = 4; float length = 5; "
        "float width = 6; float height = 7; float heading = 8; float velocity_x = 9; float velocity_y = 10; "
        "bool valid = 11",
        "Track": "int32 id = 1; int32 object_type = 2; repeated ObjectState states = 3",
        "RequiredPrediction": "int32 track_index = 1; int32 difficulty = 2",
        "Scenario": "repeated double timestamps_seconds = 1; repeated Track tracks = 2; "
        "repeated int32 objects_of_interest = 4; string scenario_id = 5; int32 sdc_track_index = 6; "
        "repeated DynamicMapState dynamic_map_states = 7; repeated MapFeature map_features = 8; "
        "int32 current_time_index = 10; repeated RequiredPrediction tracks_to_predict = 11",
    },
)
# Kind of a map feature -> number of its field in MapFeature, and the field of its points.
_LINES = {"lane": (3, "polyline"), "road_line": (4, "polyline"), "road_edge": (5, "polyline")}
_AREAS = {"crosswalk": (8, "polygon"), "speed_bump": (9, "polygon"), "driveway": (10, "polygon")}
_KINDS = {**_LINES, "stop_sign": (7, "position"), **_AREAS}


class WaymoScenario:
    """Decoder of the `Scenario` messages of the Waymo Open Motion Dataset, for `TFRecord`.

    An example has three ragged axes, so that `engine.Padded`, `engine.Bucketed` and `engine.Packed` apply:
    `fields=WaymoScenario.FIELDS`. `time` is 91 steps of 0.1 s in the training set. Positions are in metres, in the
    frame of the scenario, and are stored as float64: subtract an origin before they become float32.

    | entry | shape | content |
    |---|---|---|
    | `scenario_id` | text | identifier |
    | `timestamps` | float64 `[time]` | seconds |
    | `current_time_index` | int32 | last step of the history |
    | `sdc_track_index` | int32 | track of the autonomous vehicle |
    | `track_id` | int32 `[tracks]` | identifier in the scenario |
    | `track_type` | int8 `[tracks]` | 1 vehicle, 2 pedestrian, 3 cyclist, 4 other |
    | `track_position` | float64 `[tracks, time, 3]` | centre of the box |
    | `track_size` | float32 `[tracks, time, 3]` | length, width, height |
    | `track_heading` | float32 `[tracks, time]` | radians, counter-clockwise from the x axis |
    | `track_velocity` | float32 `[tracks, time, 2]` | metres per second |
    | `track_valid` | bool `[tracks, time]` | whether the state is known |
    | `track_to_predict` | bool `[tracks]` | whether the track is among `tracks_to_predict` |
    | `track_difficulty` | int8 `[tracks]` | difficulty of that prediction, 0 to 2 |
    | `track_of_interest` | bool `[tracks]` | whether the track is among `objects_of_interest` |
    | `map_points` | float64 `[polylines, points, 3]` | map features, cut into pieces of at most `points` points |
    | `map_valid` | bool `[polylines, points]` | whether the point exists |
    | `map_kind` | int8 `[polylines]` | kind of the feature, see below |
    | `map_type` | int8 `[polylines]` | type of a lane, line or edge in map.proto, else 0 |
    | `map_id` | int64 `[polylines]` | identifier of the map feature |
    | `map_speed_limit` | float32 `[polylines]` | of a lane, miles per hour; 0 if unknown |
    | `signal_lane` | int64 `[signals]` | `map_id` of the lane that a traffic signal controls |
    | `signal_point` | float64 `[signals, 3]` | where traffic stops |
    | `signal_state` | int8 `[signals, time]` | state in map.proto, 0 if unknown |
    | `signal_valid` | bool `[signals, time]` | whether the signal was observed at this step |

    `map_kind` is the number of the field in the message MapFeature: 3 lane, 4 road line, 5 road edge, 7 stop sign,
    8 crosswalk, 9 speed bump, 10 driveway.

    Args:
        parts: which of "tracks", "map" and "signals" to decode.
        points: points of a polyline.

    Raises:
        DataError: a part is unknown, or `points` is below 1.
    """

    FIELDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "tracks": (
            *("track_id", "track_type", "track_position", "track_size", "track_heading", "track_velocity"),
            *("track_valid", "track_to_predict", "track_difficulty", "track_of_interest"),
        ),
        "map": ("map_points", "map_valid", "map_kind", "map_type", "map_id", "map_speed_limit"),
        "signals": ("signal_lane", "signal_point", "signal_state", "signal_valid"),
    }
    """Axis -> its entries, as the argument `fields` of `engine.Padded`."""

    def __init__(self, parts: Sequence[str] = ("tracks", "map", "signals"), points: int = 20):
        for part in parts:
            if part not in self.FIELDS:
                raise DataError(
                    f"parts: found {part!r}, allowed: tracks, map, signals.{did_you_mean(part, self.FIELDS)}"
                )
        if points < 1:
            raise DataError(f"points = {points}: allowed are 1 and more points of a polyline.")
        self.parts, self.points = tuple(parts), points

    def __repr__(self) -> str:
        return f"WaymoScenario({self.parts}, {self.points})"

    def __call__(self, record: bytes) -> Example:
        """Returns the scenario of a record. Raises DataError if it is damaged or inconsistent."""
        scenario = _SCENARIO.parse(record)
        times = np.array(scenario.timestamps_seconds, np.float64)
        if not scenario.tracks or not len(times):
            raise DataError("the record has no tracks or no timestamps: it is no Scenario of Waymo. Name its decoder.")
        example = {
            "scenario_id": scenario.scenario_id,
            "timestamps": times,
            "current_time_index": np.array(scenario.current_time_index, np.int32),
            "sdc_track_index": np.array(scenario.sdc_track_index, np.int32),
        }
        if "tracks" in self.parts:
            example |= _tracks(scenario.tracks, len(times))
            example |= _roles(scenario, example["track_id"])
        if "map" in self.parts:
            example |= _map(scenario.map_features, self.points)
        if "signals" in self.parts:
            example |= _signals(scenario.dynamic_map_states, len(times))
        return example


def _columns(messages: Collection[Any], fields: Sequence[str], dtype: npt.DTypeLike) -> np.ndarray:
    """Returns fields of many messages as an array `[messages, fields]`."""
    rows = map(attrgetter(*fields), messages)
    values = rows if len(fields) == 1 else chain.from_iterable(rows)
    return np.fromiter(values, dtype, len(messages) * len(fields)).reshape(len(messages), len(fields))


def _tracks(tracks: Sequence[Any], times: int) -> dict[str, np.ndarray]:
    for i, track in enumerate(tracks):
        if len(track.states) != times:
            raise DataError(f"track {i} has {len(track.states)} states, the scenario has {times} timestamps.")
    states = list(chain.from_iterable(track.states for track in tracks))

    def values(dtype: npt.DTypeLike, *fields: str) -> np.ndarray:
        return _columns(states, fields, dtype).reshape(len(tracks), times, len(fields))

    return {
        "track_id": _columns(tracks, ("id",), np.int32)[:, 0],
        "track_type": _columns(tracks, ("object_type",), np.int32)[:, 0].astype(np.int8),
        "track_position": values(np.float64, "center_x", "center_y", "center_z"),
        "track_size": values(np.float32, "length", "width", "height"),
        "track_heading": values(np.float32, "heading")[..., 0],
        "track_velocity": values(np.float32, "velocity_x", "velocity_y"),
        "track_valid": values(bool, "valid")[..., 0],
    }


def _roles(scenario: Any, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Returns which tracks are to be predicted, how difficult that is, and which are of interest."""
    rows, difficulties = _columns(scenario.tracks_to_predict, ("track_index", "difficulty"), np.int32).T
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(ids):
        raise DataError(f"tracks_to_predict names track {rows.max()}, the scenario has {len(ids)} tracks.")
    chosen, difficulty = np.zeros(len(ids), bool), np.zeros(len(ids), np.int8)
    chosen[rows], difficulty[rows] = True, difficulties
    of_interest = np.isin(ids, np.array(scenario.objects_of_interest, np.int32))
    return {"track_to_predict": chosen, "track_difficulty": difficulty, "track_of_interest": of_interest}


def _map(features: Sequence[Any], size: int) -> dict[str, np.ndarray]:
    """Returns the map features, cut into polylines of at most `size` points."""
    points, counts, entries = [], [], []
    for feature in features:
        name = feature.WhichOneof("kind")
        if name is None:  # a kind of a later version of the dataset
            continue
        body, (number, points_field) = getattr(feature, name), _KINDS[name]
        own = getattr(body, points_field)
        if name == "stop_sign":
            own = [own] if body.HasField(points_field) else []
        points += own
        counts.append(len(own))
        limit = body.speed_limit_mph if name == "lane" else 0
        entries.append((number, getattr(body, "type", 0), feature.id, limit))
    cut, valid, pieces = cut_polylines(_columns(points, ("x", "y", "z"), np.float64), np.array(counts, np.int64), size)
    names = (("map_kind", np.int8), ("map_type", np.int8), ("map_id", np.int64), ("map_speed_limit", np.float32))
    rest = {}
    for (name, dtype), values in zip(names, list(zip(*entries, strict=True)) or [()] * 4, strict=True):
        wide = np.array(values, np.float64 if dtype is np.float32 else np.int64)
        with np.errstate(over="ignore", invalid="ignore"):  # a damaged speed limit
            rest[name] = np.repeat(wide, pieces).astype(dtype)
    return {"map_points": cut, "map_valid": valid, **rest}


def _signals(steps: Sequence[Any], times: int) -> dict[str, np.ndarray]:
    """Returns the traffic signals by lane; the stop point is the first that a lane has."""
    if len(steps) > times:
        raise DataError(f"{len(steps)} dynamic map states, the scenario has {times} timestamps.")
    signals = list(chain.from_iterable(step.lane_states for step in steps))
    by_signal, states = _columns(signals, ("lane", "state"), np.int64).T
    stops = _columns([signal.stop_point for signal in signals], ("x", "y", "z"), np.float64)
    lanes, first, index = np.unique(by_signal, return_index=True, return_inverse=True)
    time = np.repeat(np.arange(len(steps)), [len(step.lane_states) for step in steps])
    state, valid = np.zeros((len(lanes), times), np.int8), np.zeros((len(lanes), times), bool)
    state[index, time], valid[index, time] = states, True
    return {"signal_lane": lanes, "signal_point": stops[first], "signal_state": state, "signal_valid": valid}
