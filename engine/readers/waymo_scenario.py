"""Decodes the `Scenario` message of the Waymo Open Motion Dataset, without Waymo's package and TensorFlow.

The numbers of the fields are those of scenario.proto and map.proto of https://github.com/waymo-research/waymo-open-dataset.
"""

import struct
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from engine.base.errors import DataError, did_you_mean
from engine.data.source import Example
from engine.readers import wire
from engine.readers.polylines import cut_polylines
from engine.readers.wire_columns import BOOL, DOUBLE, FLOAT, INTEGER, Span, columns, spans

_TIMESTAMPS, _TRACKS, _OF_INTEREST, _ID, _SDC, _SIGNALS, _MAP, _NOW, _TO_PREDICT = 1, 2, 4, 5, 6, 7, 8, 10, 11
_STATE = {**dict.fromkeys((2, 3, 4), DOUBLE), **dict.fromkeys(range(5, 11), FLOAT), 11: BOOL}
_POINT = {1: DOUBLE, 2: DOUBLE, 3: DOUBLE}
# Fields of MapFeature -> (field of the type, field of the points) in the message of this kind of feature.
_FEATURES = {3: (2, 8), 4: (1, 2), 5: (1, 2), 7: (0, 2), 8: (0, 1), 9: (0, 1), 10: (0, 1)}
_LANE = 3


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
        single = {_SDC: 0, _NOW: 0}
        found: dict[int, list[Span]] = {number: [] for number in (_TRACKS, _SIGNALS, _MAP, _TO_PREDICT)}
        name = ""
        for number, kind, a, b in wire.fields(record):
            if number in found and kind == wire.BYTES:
                found[number].append((a, b))
            elif number in single and kind == wire.VARINT:
                single[number] = wire.signed(a)
            elif number == _ID and kind == wire.BYTES:
                name = wire.text(record, a, b)
        times = wire.numbers(record, 0, len(record), _TIMESTAMPS, "<f8").astype(np.float64)
        if not found[_TRACKS] or not len(times):
            raise DataError("the record has no tracks or no timestamps: it is no Scenario of Waymo. Name its decoder.")
        example = {
            "scenario_id": name,
            "timestamps": times,
            "current_time_index": np.array(single[_NOW], np.int32),
            "sdc_track_index": np.array(single[_SDC], np.int32),
        }
        if "tracks" in self.parts:
            example |= _tracks(record, found[_TRACKS], len(times))
            example |= _roles(record, found[_TO_PREDICT], example["track_id"])
        if "map" in self.parts:
            example |= _map(record, found[_MAP], self.points)
        if "signals" in self.parts:
            example |= _signals(record, found[_SIGNALS], len(times))
        return example


def _split(record: bytes, message: Span, repeated: int) -> tuple[dict[int, int], list[Span], float]:
    """Returns the integers in a message by field, where the messages of one field lie, and the double in field 1."""
    values: dict[int, int] = {}
    double = 0.0
    found: list[Span] = []
    for number, kind, a, b in wire.fields(record, *message):
        if kind == wire.BYTES:
            if number == repeated:
                found.append((a, b))
        elif kind == wire.VARINT:
            values[number] = wire.signed(a)
        elif kind == wire.FIXED64 and number == 1:
            (double,) = struct.unpack_from("<d", record, a)
    return values, found, double


def _tracks(record: bytes, tracks: list[Span], times: int) -> dict[str, np.ndarray]:
    states: list[Span] = []
    heads = []
    for i, track in enumerate(tracks):
        head, own, _ = _split(record, track, 3)
        if len(own) != times:
            raise DataError(f"track {i} has {len(own)} states, the scenario has {times} timestamps.")
        heads.append((head.get(1, 0), head.get(2, 0)))
        states += own
    values = columns(record, states, _STATE)
    ids, types = np.array(heads, np.int64).T

    def stacked(*numbers: int) -> np.ndarray:
        return np.stack([values[number] for number in numbers], -1).reshape(len(tracks), times, len(numbers))

    return {
        "track_id": ids.astype(np.int32),
        "track_type": types.astype(np.int8),
        "track_position": stacked(2, 3, 4),
        "track_size": stacked(5, 6, 7),
        "track_heading": values[8].reshape(len(tracks), times),
        "track_velocity": stacked(9, 10),
        "track_valid": values[11].reshape(len(tracks), times),
    }


def _roles(record: bytes, to_predict: list[Span], ids: np.ndarray) -> dict[str, np.ndarray]:
    """Returns which tracks are to be predicted, how difficult that is, and which are of interest."""
    required = columns(record, to_predict, {1: INTEGER, 2: INTEGER})
    if len(required[1]) and not 0 <= required[1].min() <= required[1].max() < len(ids):
        raise DataError(f"tracks_to_predict names track {required[1].max()}, the scenario has {len(ids)} tracks.")
    chosen, difficulty = np.zeros(len(ids), bool), np.zeros(len(ids), np.int8)
    chosen[required[1]], difficulty[required[1]] = True, required[2]
    of_interest = np.isin(ids, wire.integers(record, 0, len(record), _OF_INTEREST))
    return {"track_to_predict": chosen, "track_difficulty": difficulty, "track_of_interest": of_interest}


def _map(record: bytes, features: list[Span], size: int) -> dict[str, np.ndarray]:
    """Returns the map features, cut into polylines of at most `size` points."""
    points: list[Span] = []
    counts, entries = [], []
    for feature in features:
        kind, identifier, body = 0, 0, (0, 0)
        for number, wire_type, a, b in wire.fields(record, *feature):
            if number in _FEATURES and wire_type == wire.BYTES:
                kind, body = number, (a, b)
            elif number == 1 and wire_type == wire.VARINT:
                identifier = wire.signed(a)
        type_field, points_field = _FEATURES[kind] if kind else (0, 0)
        values, own, limit = _split(record, body, points_field)
        points += own
        counts.append(len(own))
        entries.append((kind, values.get(type_field, 0), identifier, limit if kind == _LANE else 0))
    return _polylines(record, points, np.array(counts, np.int64), size, list(zip(*entries, strict=True)) or [()] * 4)


def _polylines(
    record: bytes, points: list[Span], counts: np.ndarray, size: int, entries: Sequence[Sequence[float]]
) -> dict[str, np.ndarray]:
    """Returns `[polylines, size]` points, and the kind, type, id and speed limit of the feature of each polyline."""
    found = columns(record, points, _POINT)
    xyz = np.stack([found[1], found[2], found[3]], -1)
    xyz, valid, pieces = cut_polylines(xyz, counts, size)
    names = (("map_kind", np.int8), ("map_type", np.int8), ("map_id", np.int64), ("map_speed_limit", np.float32))
    rest = {}
    for (name, dtype), values in zip(names, entries, strict=True):
        wide = np.array(values, np.float64 if dtype is np.float32 else np.int64)
        with np.errstate(over="ignore", invalid="ignore"):  # a damaged speed limit
            rest[name] = np.repeat(wide, pieces).astype(dtype)
    return {"map_points": xyz, "map_valid": valid, **rest}


def _signals(record: bytes, steps: list[Span], times: int) -> dict[str, np.ndarray]:
    """Returns the traffic signals by lane; the stop point is the first that a lane has."""
    if len(steps) > times:
        raise DataError(f"{len(steps)} dynamic map states, the scenario has {times} timestamps.")
    seen = [spans(record, *step, 1) for step in steps]
    signals = [signal for step in seen for signal in step]
    values = columns(record, signals, {1: INTEGER, 2: INTEGER})
    stops = columns(record, [(spans(record, *signal, 3) or [(0, 0)])[-1] for signal in signals], _POINT)
    lanes, first, index = np.unique(values[1], return_index=True, return_inverse=True)
    time = np.repeat(np.arange(len(seen)), [len(step) for step in seen])
    state, valid = np.zeros((len(lanes), times), np.int8), np.zeros((len(lanes), times), bool)
    state[index, time], valid[index, time] = values[2], True
    return {
        "signal_lane": lanes,
        "signal_point": np.stack([stops[1], stops[2], stops[3]], -1)[first],
        "signal_state": state,
        "signal_valid": valid,
    }
