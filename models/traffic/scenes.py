"""Simulated traffic scenes with a map: 2 s of history and 6 s of future at 2 Hz, as in nuScenes, in ArrayRecord files.

The networks of the splits differ, so validation and test show a model on maps that it has not seen. `scenes` simulates
a split on first use: all three take about two minutes of one core (an estimate). `convoy data write` does the same in
advance:

    convoy data write --data.target=convoy_zoo.models.traffic.scenes.Traffic --data.split=train \
        --out=data/traffic/train-v1.arrayrecord

An example of `Traffic` has three ragged axes (`FIELDS`). `time` is the 17 steps of a scene. Positions are in metres, in
axes of the network with the origin at track 0 at the step CURRENT. Headings are radians, counter-clockwise from x.

| entry | shape | content |
|---|---|---|
| `scene_id` | text | split, network and number of the scene |
| `network` | int32 | number of the network in its split |
| `origin` | float32 `[2]` | the origin of the scene in the network |
| `track_type` | int8 `[tracks]` | index into TYPES: car, truck, bus, bicycle, pedestrian |
| `track_size` | float32 `[tracks, 2]` | length, width |
| `track_position` | float32 `[tracks, time, 2]` | centre; 0 where it is not valid |
| `track_heading`, `track_speed` | float32 `[tracks, time]` | radians; metres per second |
| `track_valid` | bool `[tracks, time]` | whether the agent is in the simulation |
| `track_to_predict` | bool `[tracks]` | at most TARGETS tracks that are valid at all steps, track 0 among them |
| `map_points` | float32 `[map, 5, 2]` | centre line of a piece of a lane, at most 30 m long, in driving direction |
| `map_kind` | int8 `[map]` | index into KINDS: road, junction, pavement, crossing |
| `map_width`, `map_speed_limit` | float32 `[map]` | metres; metres per second |
| `map_id` | int32 `[map]` | number of the lane in the network |
| `map_next` | int32 `[map, 4]` | pieces that follow, as indices into the scene's map; -1 for none |
| `signal_lane` | int32 `[signals]` | piece of the map that the light lets traffic enter |
| `signal_point` | float32 `[signals, 2]` | first point of that piece |
| `signal_state` | int8 `[signals, time]` | index into LIGHTS: red, yellow, green |

Tracks are all agents within RADIUS of the origin at the step CURRENT, the nearest first. The map has all pieces and
lights within MAP_RADIUS. Vehicles follow lanes: a vehicle whose centre is farther than half of the width from every
piece of the kinds road and junction has left the road.
"""

import contextlib
import fcntl
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engine import DataError, readers, write_dataset

from .simulation import KINDS, LIGHTS, RATE, TYPES, Recording, simulate, sumo_folder

__all__ = ["CURRENT", "FIELDS", "KINDS", "LIGHTS", "RATE", "STEPS", "TYPES", "Traffic", "scenes"]

CURRENT, STEPS = 4, 17  # the last observed step, and all steps of a scene
RADIUS, MAP_RADIUS = 60.0, 110.0  # metres
TRACKS, TARGETS = 48, 8  # most tracks of a scene, and most that are to be predicted
SCENES = 200  # scenes of a network
NETWORKS = {"train": 24, "validation": 2, "test": 4}
VERSION = 1  # version of the scenes; part of the names of files
FIELDS = {
    "tracks": [f"track_{x}" for x in ("type", "size", "position", "heading", "speed", "valid", "to_predict")],
    "map": [f"map_{x}" for x in ("points", "kind", "width", "speed_limit", "id", "next")],
    "signals": [f"signal_{x}" for x in ("lane", "point", "state")],
}
"""Axis -> its entries, as the argument `fields` of `engine.Padded`."""


class Traffic:
    """Source of simulated scenes, which simulates a network when the first of its scenes is read.

    Args:
        split: "train", "validation" or "test".
        networks: number of networks; None: those of the split.
        count: scenes of each network.
        seed: changes all networks and the traffic on them.

    Raises:
        DataError: the split is unknown, or `networks` or `count` is below 1.
    """

    def __init__(self, split: str = "train", networks: int | None = None, count: int = SCENES, seed: int = 0):
        if split not in NETWORKS:
            raise DataError(f"split = {split!r} is unknown: allowed are {', '.join(NETWORKS)}.")
        self.split, self.count, self.seed = split, count, seed
        self.networks = NETWORKS[split] if networks is None else networks
        for name, value in (("networks", self.networks), ("count", count)):
            if value < 1:
                raise DataError(f"{name} = {value}: allowed is a whole number from 1 on.")

    def __len__(self):
        return self.networks * self.count

    def __getitem__(self, index):
        network, number = divmod(int(index), self.count)
        seed = (self.seed, list(NETWORKS).index(self.split), network)
        scene = extract(_simulated(seed), np.random.default_rng((*seed, number)))
        return {"scene_id": f"{self.split}-{network}-{number}", "network": np.int32(network), **scene}

    def fingerprint(self):
        """Returns what the content depends on, so that nothing is simulated to compare two sources."""
        return f"version {VERSION} {self.split} {self.networks} {self.count} {self.seed}"


@functools.lru_cache(maxsize=1)
def _simulated(seed: tuple[int, ...]) -> Recording:
    return simulate(seed)


def extract(recording: Recording, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns a scene of a recording at a random time, with a random agent as track 0.

    Raises:
        DataError: no agent is recorded for the steps of a scene.
    """
    present = ~np.isnan(recording.state[:, :, 0])
    windows = np.lib.stride_tricks.sliding_window_view(present, STEPS, axis=1).all(-1)  # [tracks, first step]
    candidates = np.argwhere(windows)
    if not len(candidates):
        raise DataError(f"The simulation has no agent for {STEPS} steps. Simulate more traffic.")
    focal, first = candidates[rng.integers(len(candidates))]
    state, valid = recording.state[:, first : first + STEPS], present[:, first : first + STEPS]
    origin = state[focal, CURRENT, :2]
    distance = np.where(valid[:, CURRENT], np.hypot(*(state[:, CURRENT, :2] - origin).T), np.inf)
    tracks = np.argsort(distance, kind="stable")[: min(TRACKS, np.count_nonzero(distance < RADIUS))]
    tracks = np.concatenate([[focal], tracks[tracks != focal]])
    state, valid = state[tracks], valid[tracks]
    complete = np.flatnonzero(valid.all(1))
    targets = np.concatenate([complete[:1], rng.permutation(complete[1:])[: TARGETS - 1]])
    state = np.where(valid[..., None], state - [*origin, 0, 0], 0).astype(np.float32)
    return {
        "origin": origin,
        "track_type": recording.type[tracks],
        "track_size": recording.size[tracks],
        "track_position": state[..., :2],
        "track_heading": state[..., 2],
        "track_speed": state[..., 3],
        "track_valid": valid,
        "track_to_predict": np.isin(np.arange(len(tracks)), targets),
        **_map(recording, origin, slice(first, first + STEPS)),
    }


def _map(recording: Recording, origin: np.ndarray, steps: slice) -> dict[str, np.ndarray]:
    """Returns the map and the lights within MAP_RADIUS of a point of the network."""
    points = recording.points - origin
    near = np.hypot(points[..., 0], points[..., 1]).min(1) < MAP_RADIUS
    number = np.append(np.where(near, np.cumsum(near) - 1, -1), -1).astype(np.int32)  # -1: no piece nearby
    lights = near[recording.signal_piece]
    pieces = recording.signal_piece[lights]
    return {
        "map_points": points[near],
        "map_kind": recording.kind[near],
        "map_width": recording.width[near],
        "map_speed_limit": recording.limit[near],
        "map_id": recording.lane[near],
        "map_next": number[recording.next[near]],
        "signal_lane": number[pieces],
        "signal_point": points[pieces, 0],
        "signal_state": recording.signal_state[lights, steps],
    }


def scenes(split: str = "train", folder: str = "data/traffic", **options) -> readers.ArrayRecordSource:
    """Returns the scenes of a split, and simulates them first if `folder` does not have them.

    If several processes call it, one simulates and the others wait. A simulation that is killed continues with the
    next call.

    Args:
        split: as for Traffic.
        folder: where the files are, or will be.
        options: further arguments of Traffic; they become part of the names of the files.

    Raises:
        DataError: the split is unknown, SUMO is not installed or fails, or the files cannot be written or read.
    """
    source, settings = Traffic(split, **options), [f"-{name}{value}" for name, value in sorted(options.items())]
    path = Path(folder).expanduser() / f"{split}-v{VERSION}{''.join(settings)}.arrayrecord"
    if _is_complete(path):
        return readers.ArrayRecordSource(str(path))
    sumo_folder()
    with _locked(path.with_suffix(".lock")):
        if not _is_complete(path):
            write_dataset(source, path, shards=source.networks, on_progress=_progress(path))
    return readers.ArrayRecordSource(str(path))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for the lock of a file and holds it. Raises DataError if its folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise DataError(
            f"{path.parent}: cannot write simulated scenes: {error.strerror}. Set `folder` to another one."
        ) from error
    with lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_complete(path: Path) -> bool:
    try:
        return len(readers.ArrayRecordSource(str(path))) > 0
    except DataError:
        return False


def _progress(path: Path):
    """Returns a function that prints every tenth part of the simulation to stderr."""
    printed = [-1]

    def report(done: int, total: int) -> None:
        part = 10 * done // total
        if part > printed[0]:
            printed[0] = part
            print(f"{path}: simulated {done} of {total} scenes", file=sys.stderr, flush=True)

    return report
