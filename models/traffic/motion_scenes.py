"""Sources of motion forecasting: scenarios of Argoverse 2 and of Waymo, in one form.

`convoy_zoo.models.traffic.motion_examples.example` lists the entries of their examples.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from engine import DataError, readers

from ..miniatures.folder import make_if_default
from .motion_examples import POINTS, Scenario, Sizes, example, present


class Argoverse2Scenes:
    """Source of the scenarios of Argoverse 2; see `example` for the entries, and `Argoverse2Motion` for the files.

    The first target is the focal track; scored tracks follow, as far as `targets` allows. `scenario_id` and `track_id`
    are text, `track_id` `[targets]`.

    Args:
        split: "train", "val" or "test".
        folder: has the splits. The default is made if it is absent: a simulated miniature.
        targets, agents, lines, history, stride: as in `Sizes`.

    Raises:
        DataError: the folder or the split is absent, or a size is below 1.
    """

    def __init__(
        self,
        split: str = "train",
        folder: str = "data/miniatures/argoverse2_motion",
        targets: int = 4,
        agents: int = 16,
        lines: int = 48,
        history: int = 10,
        stride: int = 5,
    ):
        make_if_default("argoverse2_motion", folder)
        self.sizes = _checked(Sizes(targets, agents, lines, history, stride, 60), 49)
        self.source = readers.Argoverse2Motion(folder, split, points=POINTS)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        found = self.source[index]
        if found["focal_track_index"] < 0:
            raise DataError(f"scenario {found['scenario_id']}: its focal track is missing. Copy it again.")
        scenario = argoverse2(found)
        names = found["track_name"][present(scenario)[: self.sizes.targets]].tolist()
        names += [""] * (self.sizes.targets - len(names))
        return {"scenario_id": found["scenario_id"], "track_id": np.array(names), **example(scenario, self.sizes)}

    def fingerprint(self):
        """Returns what identifies the scenarios and the sizes."""
        return f"{self.source.fingerprint()}; {self.sizes}"


class WaymoScenes:
    """Source of the scenarios of Waymo's motion dataset; see `example` for the entries.

    `scenario_id` is text, `track_id` int32 `[targets]`, -1 for padding, `type` int32 `[targets]`: 1 vehicle, 2
    pedestrian, 3 cyclist, 0 padding, and `tracks_to_predict` int32: how many the scenario has.

    Args:
        split: name of the folder of the files, such as "training", "validation" or "testing".
        folder: has the splits. The default is made if it is absent: a simulated miniature.
        targets, agents, lines, history, stride, others: as in `Sizes`. The dataset has at most 8 targets.
        account_name, method_name, model_parameters: for `convoy predict --format=waymo`: the e-mail address of an
            account, a short name, and a number such as "2M".

    Raises:
        DataError: the folder or the split is absent, or a size is below 1.
    """

    def __init__(
        self,
        split: str = "training",
        folder: str = "data/miniatures/waymo_motion",
        targets: int = 4,
        agents: int = 16,
        lines: int = 48,
        history: int = 11,
        stride: int = 1,
        others: int = 16,
        account_name: str = "",
        method_name: str = "",
        model_parameters: str = "",
    ):
        make_if_default("waymo_motion", folder)
        self.sizes = _checked(Sizes(targets, agents, lines, history, stride, 80, others), 10)
        self.about = dict(account_name=account_name, method_name=method_name, model_parameters=model_parameters)
        decoder = readers.WaymoScenario(points=POINTS)
        self.source = readers.TFRecord(str(Path(folder) / split / "*.tfrecord*"), decoder)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        found = self.source[index]
        scenario, count = waymo(found), self.sizes.targets
        chosen = present(scenario)[:count]
        rest = {"track_id": found["track_id"][chosen], "type": found["track_type"][chosen].astype(np.int32)}
        fill = {"track_id": -1, "type": 0}
        rest = {name: np.pad(x, (0, count - len(x)), constant_values=fill[name]) for name, x in rest.items()}
        rest["tracks_to_predict"] = np.array(len(scenario.targets), np.int32)
        return {"scenario_id": found["scenario_id"], **self.about, **rest, **example(scenario, self.sizes)}

    def fingerprint(self):
        """Returns what identifies the scenarios and the sizes."""
        return f"{self.source.fingerprint()}; {self.sizes}"


def _checked(sizes: Sizes, current: int) -> Sizes:
    for name, value in dataclasses.asdict(sizes).items():
        if value < (name != "others"):
            raise DataError(f"{name} = {value}: allowed is a whole number from 1 on.")
    back = (sizes.history - 1) * sizes.stride
    if back > current:
        raise DataError(
            f"history = {sizes.history}, stride = {sizes.stride}: the first step is {back} steps before the current "
            f"one, and the scenarios have {current}. Lower one of them."
        )
    return sizes


def argoverse2(found: dict[str, Any]) -> Scenario:
    """Returns a scenario as `readers.Argoverse2Motion` reads it in the common form; sizes are unknown there."""
    valid = found["track_valid"]
    scored = np.flatnonzero(found["track_category"] == 2)
    focal = int(found["focal_track_index"])
    kind = found["map_kind"]
    return Scenario(
        position=found["track_position"],
        heading=found["track_heading"],
        velocity=found["track_velocity"],
        size=np.zeros((*valid.shape, 2), np.float32),
        valid=valid,
        kind=np.array([0, 1, 3, 2, 4, 5, 5, 5, 5, 5])[found["track_type"]],
        targets=np.array([focal, *(n for n in scored if n != focal)]),
        current=int(found["current_time_index"]),
        lines=found["map_points"][..., :2],
        line_valid=found["map_valid"],
        line_kind=np.array([0, 1, 1, 3, 2])[kind],
        line_light=np.zeros(len(kind), int),
        line_rest=found["map_intersection"].astype(np.float32),
    )


def waymo(found: dict[str, Any]) -> Scenario:
    """Returns a scenario as `readers.WaymoScenario` decodes it in the common form."""
    current, kind = int(found["current_time_index"]), found["map_kind"]
    seen = found["signal_valid"][:, current]
    states = np.array([0, 1, 2, 3, 1, 2, 3, 1, 2])[found["signal_state"][:, current]]  # as in map.proto
    light = dict(zip(found["signal_lane"][seen].tolist(), states[seen].tolist(), strict=True))
    lights = [light.get(n, 0) if k == 3 else 0 for n, k in zip(found["map_id"].tolist(), kind.tolist(), strict=True)]
    return Scenario(
        position=found["track_position"][..., :2],
        heading=found["track_heading"],
        velocity=found["track_velocity"],
        size=found["track_size"][..., :2],
        valid=found["track_valid"],
        kind=np.array([5, 0, 1, 2, 5])[found["track_type"]],
        targets=np.flatnonzero(found["track_to_predict"]),
        current=current,
        lines=found["map_points"][..., :2],
        line_valid=found["map_valid"],
        line_kind=np.array([4, 4, 4, 0, 1, 2, 4, 4, 3, 4, 4])[kind],
        line_light=np.array(lights, int).reshape(len(kind)),
        line_rest=found["map_speed_limit"] / 30,
    )
