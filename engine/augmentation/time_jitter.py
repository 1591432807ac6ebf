"""`TimeJitter`: tracks, boxes and times as they would be some milliseconds earlier or later."""

import dataclasses
from typing import Any

import numpy as np

from engine.augmentation.entries import array, described, entry, mask, replaced
from engine.augmentation.motion import wrapped
from engine.augmentation.scene import Boxes, Points, Tracks
from engine.augmentation.step import Augmentation
from engine.base.errors import did_you_mean
from engine.data.examples import Example

PARTS = ("tracks", "boxes", "ages", "times")


@dataclasses.dataclass(frozen=True)
class TimeJitter(Augmentation):
    """Shifts what was measured by a random time, as clocks and delays of sensors do.

    - "tracks": the states at t + shift, by linear interpolation between two steps; headings turn the shorter way. A
      state is valid if both steps are. Without a mask, tracks stay still before their first and after their last step.
    - "boxes": positions move by velocity * shift. Boxes without velocity are refused.
    - "ages": the column `Points.age` becomes larger by the shift.
    - "times": the entries `Scene.times` become larger by the shift.

    Points and images stay. Its parameters are the shifts in seconds, float64 `[1]`, or `[agents]` with `each_agent`.
    """

    seconds: float | tuple[float, float] = 0.05
    """Range of the shift, which is drawn uniformly; a number for (-number, number)."""
    parts: tuple[str, ...] = ("tracks", "times")
    each_agent: bool = False
    """Whether each agent of the tracks has its own draw; "tracks" is then the only part."""

    def check(self) -> None:
        self.range("seconds")
        for part in self.parts:
            if part not in PARTS:
                near = did_you_mean(str(part), PARTS)
                raise self.error(f"parts has {part!r}. Allowed: {', '.join(PARTS)}.{near}")
        if self.each_agent and tuple(self.parts) != ("tracks",):
            raise self.error(f"each_agent needs parts = ('tracks',), found {tuple(self.parts)!r}.")

    def draw(self, rng: np.random.Generator, example: Example) -> np.ndarray:
        count = 1
        if self.each_agent:
            counts = {self._positions(example, tracks).shape[-3] for tracks in self.described.tracks}
            if len(counts) != 1:
                raise self.error(f"each_agent needs tracks of one number of agents, found {sorted(counts) or 'none'}.")
            count = counts.pop()
        return rng.uniform(*self.range("seconds"), count)

    def apply(self, example: Example, parameters: np.ndarray) -> Example:
        changes: dict[str, Any] = {}
        scene, shift = self.described, np.asarray(parameters, np.float64)
        if "tracks" in self.parts:
            for tracks in scene.tracks:
                changes |= self._tracks(example, tracks, shift)
        if "boxes" in self.parts:
            for boxes in scene.boxes:
                changes |= self._boxes(example, boxes, shift[0])
        if "ages" in self.parts:
            for points in scene.points:
                changes |= self._ages(example, points, shift[0])
        if "times" in self.parts:
            for path in scene.times:
                changes[path] = self._later(example, path, shift[0])
        return replaced(example, changes)

    def _later(self, example: Example, path: str, shift: float) -> np.ndarray:
        old = np.asarray(entry(example, path, self.where))
        if old.dtype.kind != "f":
            raise self.error(f"{path} is {described(old)}, allowed are seconds as floating-point numbers.")
        return np.asarray(old + shift, old.dtype)

    def _positions(self, example: Example, tracks: Tracks) -> np.ndarray:
        return array(example, tracks.position, self.where, "[..., agents, time, 2 or 3]", (-2,), least=3)

    def _tracks(self, example: Example, tracks: Tracks, shift: np.ndarray) -> dict[str, Any]:
        position = self._positions(example, tracks)
        steps = position.shape[-2]
        at = np.arange(steps) + shift[:, None] / tracks.step_s  # [agents or 1, time]
        before = np.floor(at).astype(np.int64)
        weight = at - before
        inside = (before >= 0) & (before + (weight > 0) < steps)
        pairs = np.clip(before, 0, steps - 1), np.clip(before + 1, 0, steps - 1)
        pairs = tuple(np.broadcast_to(index, (position.shape[-3], steps)) for index in pairs)
        changes: dict[str, Any] = {}
        keep = None
        if tracks.valid:
            valid = mask(example, tracks.valid, self.where, position.shape[:-1])
            first, second = (_taken(valid, index) for index in pairs)
            changes[tracks.valid] = keep = first & (second | (weight == 0)) & inside
        for path in filter(None, (tracks.position, tracks.velocity)):
            changes[path] = self._mixed(example, path, pairs, weight[..., None], keep, 1)
        if tracks.heading:
            changes[tracks.heading] = self._mixed(example, tracks.heading, pairs, weight, keep, 0)
        return changes

    def _mixed(
        self,
        example: Example,
        path: str,
        pairs: tuple[np.ndarray, ...],
        weight: np.ndarray,
        keep: np.ndarray | None,
        columns: int,
    ) -> np.ndarray:
        """Returns states between two steps: vectors with 1 dimension of columns, headings with 0."""
        old = array(example, path, self.where, "[..., agents, time, ...]", (), least=2 + columns)
        first, second = (_taken(old, index, columns).astype(np.float64) for index in pairs)
        change = second - first if columns else wrapped(second - first)
        new = first + change * weight
        new = new if columns else wrapped(new)
        if keep is not None:
            new = np.where(keep[..., None] if columns else keep, new, old)
        return new.astype(old.dtype)

    def _boxes(self, example: Example, boxes: Boxes, shift: float) -> dict[str, Any]:
        if boxes.table:
            old = array(example, boxes.table, self.where, "[..., boxes, 9 or more]", (-9,), least=2)
            path, velocity = boxes.table, old[..., 7:9]
        elif boxes.velocity:
            path = boxes.center or boxes.pose
            old = array(example, path, self.where, "[..., boxes, 2 or more]", (-2,), least=2)
            velocity = array(example, boxes.velocity, self.where, "[..., boxes, 2 or 3]", (-2,), least=2)
        else:
            raise self.error("boxes have no velocity. Name it in Boxes, or leave 'boxes' out of `parts`.")
        new = old.copy()
        moved = new[..., :3, 3] if path == boxes.pose else new  # a view of the positions
        size = min(velocity.shape[-1], moved.shape[-1]) if path != boxes.table else 2
        step = (velocity[..., :size] * shift).astype(old.dtype)
        if boxes.valid:
            step = np.where(mask(example, boxes.valid, self.where, step.shape[:-1])[..., None], step, 0)
        moved[..., :size] += step
        return {path: new}

    def _ages(self, example: Example, points: Points, shift: float) -> dict[str, Any]:
        if points.age is None:
            return {}
        shape = f"[..., points, {points.age + 1} or more]"
        old = array(example, points.entry, self.where, shape, (-points.age - 1,), least=2)
        valid = mask(example, points.valid, self.where, old.shape[:-1]) if points.valid else True
        new = old.copy()
        new[..., points.age] += np.where(valid, shift, 0).astype(old.dtype)
        return {points.entry: new}


def _taken(states: np.ndarray, index: np.ndarray, columns: int = 0) -> np.ndarray:
    """Returns the states `[..., agents, time, ...]` at steps `[agents, time]`."""
    agents = np.arange(len(index))[:, None]
    return states[..., agents, index, :] if columns else states[..., agents, index]
