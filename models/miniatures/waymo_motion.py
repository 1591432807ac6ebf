"""Writes simulated scenes in the format of the Waymo Open Motion Dataset: `Scenario` protos in TFRecord files.

python -m convoy_zoo.models.miniatures.waymo_motion FOLDER

FOLDER/SPLIT/SPLIT.tfrecord-00000-of-00002 and so on have 91 steps of 0.1 s, of which 11 are the history. Scenarios of
`testing` end after the history. The scenes are those of the miniature of Argoverse 2.
"""

import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from .crossings import LANE, RATE, SIZES, STEPS, TYPES, Crossing, crossing

HISTORY, FUTURE = 11, 80
COUNTS = {"training": 200, "validation": 40, "testing": 8}
"""Scenarios of each split."""
FILES = 2  # of a split
# Message -> its fields, "number type name", with * after a number that is repeated. The numbers are those of
# scenario.proto and map.proto of https://github.com/waymo-research/waymo-open-dataset.
MESSAGES = {
    "MapPoint": "1 double x, 2 double y, 3 double z",
    "LaneCenter": "1 double speed_limit_mph, 2 int32 type, 8* MapPoint polyline, 9* int64 entry_lanes, "
    "10* int64 exit_lanes",
    "RoadLine": "1 int32 type, 2* MapPoint polyline",
    "RoadEdge": "1 int32 type, 2* MapPoint polyline",
    "Crosswalk": "1* MapPoint polygon",
    "MapFeature": "1 int64 id, 3 LaneCenter lane, 4 RoadLine road_line, 5 RoadEdge road_edge, 8 Crosswalk crosswalk",
    "TrafficSignalLaneState": "1 int64 lane, 2 int32 state, 3 MapPoint stop_point",
    "DynamicMapState": "1* TrafficSignalLaneState lane_states",
    "ObjectState": "2 double center_x, 3 double center_y, 4 double center_z, 5 float length, 6 float width, "
    "7 float height, 8 float heading, 9 float velocity_x, 10 float velocity_y, 11 bool valid",
    "Track": "1 int32 id, 2 int32 object_type, 3* ObjectState states",
    "RequiredPrediction": "1 int32 track_index, 2 int32 difficulty",
    "Scenario": "1* double timestamps_seconds, 2* Track tracks, 4* int32 objects_of_interest, 5 string scenario_id, "
    "6 int32 sdc_track_index, 7* DynamicMapState dynamic_map_states, 8* MapFeature map_features, "
    "10 int32 current_time_index, 11* RequiredPrediction tracks_to_predict",
}
OBJECTS = {"vehicle": 1, "bus": 1, "pedestrian": 2, "cyclist": 3, "motorcyclist": 3, "construction": 4}


def write(folder: str | Path, counts: Mapping[str, int] = COUNTS, seed: int = 0, agents: int = 10) -> None:
    """Writes scenarios. The same arguments give the same bytes.

    Args:
        folder: made if it is absent.
        counts: split -> number of scenarios; splits are training, validation and testing.
        seed: changes all scenes.
        agents: moving agents of a scene, besides the recording vehicle.
    """
    new = _scenario_class()
    for number, (split, count) in enumerate(counts.items()):
        place = Path(folder) / split
        place.mkdir(parents=True, exist_ok=True)
        for file in range(FILES):
            with open(place / f"{split}.tfrecord-{file:05}-of-{FILES:05}", "wb") as out:
                for index in range(file, count, FILES):
                    scene = crossing((seed, number, index), agents)
                    message = new(scenario_id=np.random.default_rng((seed, number, index)).bytes(8).hex())
                    _fill(message, scene, HISTORY if split == "testing" else HISTORY + FUTURE)
                    out.write(_record(message.SerializeToString(deterministic=True)))


def _scenario_class() -> Any:
    """Returns the class of the message Scenario."""
    file = descriptor_pb2.FileDescriptorProto(name="scenario.proto", package="waymo", syntax="proto2")
    for name, text in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, kind, field_name in (part.split() for part in text.split(", ")):
            field = message.field.add(name=field_name, number=int(number.rstrip("*")))
            field.label = field.LABEL_REPEATED if number.endswith("*") else field.LABEL_OPTIONAL
            if kind in MESSAGES:
                field.type, field.type_name = field.TYPE_MESSAGE, f".waymo.{kind}"
            else:
                field.type = field.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("waymo.Scenario"))


def _record(data: bytes) -> bytes:
    """Returns a record of a TFRecord file: length, data, and a masked CRC32C of each."""
    size = struct.pack("<Q", len(data))
    return size + _checksum(size) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    value = google_crc32c.value(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFF_FFFF)


def _fill(scenario: Any, scene: Crossing, steps: int) -> None:
    """Fills a scenario with the last 91 steps of a scene, or with as many of these as it has."""
    first = STEPS - HISTORY - FUTURE
    chosen = slice(first, first + steps)
    scenario.current_time_index, scenario.sdc_track_index = HISTORY - 1, len(scene.types) - 1
    scenario.timestamps_seconds.extend((np.arange(steps) / RATE).tolist())
    names = ("center_x", "center_y", "heading", "velocity_x", "velocity_y")
    for number, kind in enumerate(scene.types.tolist()):
        track = scenario.tracks.add(id=100 + number, object_type=OBJECTS[TYPES[kind]])
        box = dict(zip(("length", "width", "height"), SIZES[kind], strict=True), center_z=SIZES[kind][2] / 2)
        rows = zip(scene.states[number, chosen].tolist(), scene.valid[number, chosen].tolist(), strict=True)
        for state, valid in rows:
            values = dict(zip(names, state, strict=True), **box) if valid else {}
            track.states.add(valid=valid, **values)
    for number in range(scene.predicted):
        scenario.tracks_to_predict.add(track_index=number, difficulty=1 + number % 2)
    scenario.objects_of_interest.extend([100, 101])
    _fill_lights(scenario, scene, chosen)
    _fill_map(scenario, scene)


def _fill_lights(scenario: Any, scene: Crossing, chosen: slice) -> None:
    junction = [lane for lane in scene.lanes if lane.junction]
    for step in range(chosen.start, chosen.stop):
        state = scenario.dynamic_map_states.add()
        for lane in junction:
            light = state.lane_states.add(lane=lane.number, state=int(scene.lights[lane.arm, step]))
            light.stop_point.x, light.stop_point.y = lane.points[0].tolist()


def _fill_map(scenario: Any, scene: Crossing) -> None:
    number = len(scene.lanes)
    for lane in scene.lanes:
        feature = scenario.map_features.add(id=lane.number).lane
        feature.type, feature.speed_limit_mph = 2, 30.0
        feature.entry_lanes.extend(lane.before)
        feature.exit_lanes.extend(lane.after)
        _points(feature.polyline, lane.points)
        if not lane.junction:
            ahead = np.gradient(lane.points, axis=0)
            left = np.stack([-ahead[:, 1], ahead[:, 0]], -1) / np.hypot(*ahead.T)[:, None] * LANE / 2
            line = scenario.map_features.add(id=number).road_line
            line.type = 7  # a solid double yellow line
            _points(line.polyline, lane.points + left)
            edge = scenario.map_features.add(id=number + 1).road_edge
            edge.type = 1
            _points(edge.polyline, lane.points - left)
            number += 2
    for corners in scene.crosswalks:
        _points(scenario.map_features.add(id=number).crosswalk.polygon, corners)
        number += 1


def _points(repeated: Any, points: np.ndarray) -> None:
    for x, y in points.tolist():
        repeated.add(x=x, y=y, z=0.0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m convoy_zoo.models.miniatures.waymo_motion FOLDER")
    write(sys.argv[1])
