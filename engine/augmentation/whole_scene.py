"""Augmentations that move a whole scene: `Rotate`, `Scale`, `Flip` and `Translate`. All of them are invertible.

With parameters p, `inverse(apply(example, p), p)` is the example, up to rounding in its dtype and multiples of 2 pi.
"""

import dataclasses
from typing import Any

import numpy as np

from engine.augmentation.motion import Motion, move
from engine.augmentation.step import Augmentation
from engine.data.examples import Example

MOST_DEGREES = 360.0
LEAST_SCALE, MOST_SCALE = 1e-3, 1e3


@dataclasses.dataclass(frozen=True)
class WholeScene(Augmentation):
    """Base class of the augmentations that move a whole scene. A subclass defines `draw` and `motion`."""

    def motion(self, parameters: Any) -> Motion:
        """Returns the motion of these parameters."""
        raise NotImplementedError(f"{type(self).__qualname__} defines no motion.")

    def apply(self, example: Example, parameters: Any) -> Example:
        return move(example, self.described, self.motion(parameters), self.where)

    def inverse(self, example: Example, parameters: Any) -> Example:
        """Returns the example before `apply` with these parameters."""
        return move(example, self.described, self.motion(parameters).inverse, self.where)


@dataclasses.dataclass(frozen=True)
class Rotate(WholeScene):
    """Rotates the scene about the vertical axis of the ego frame.

    Its parameter is the angle in radians, counter-clockwise from above.
    """

    degrees: float | tuple[float, float] = 45.0
    """Range of the angle, which is drawn uniformly; a number for (-number, number)."""

    def check(self) -> None:
        self.range("degrees", -MOST_DEGREES, MOST_DEGREES)

    def draw(self, rng: np.random.Generator, example: Example) -> float:
        return float(np.radians(rng.uniform(*self.range("degrees"))))

    def motion(self, parameters: float) -> Motion:
        return Motion.rotation(parameters)


@dataclasses.dataclass(frozen=True)
class Scale(WholeScene):
    """Scales the scene about the origin of the ego frame: positions, sizes and velocities.

    Its parameter is the factor, drawn uniformly from `low` to `high`.
    """

    low: float = 0.95
    high: float = 1.05

    def check(self) -> None:
        if not LEAST_SCALE <= self.low <= self.high <= MOST_SCALE:
            raise self.error(
                f"low = {self.low}, high = {self.high}: allowed are two increasing factors between {LEAST_SCALE} and "
                f"{MOST_SCALE}."
            )

    def draw(self, rng: np.random.Generator, example: Example) -> float:
        return float(rng.uniform(self.low, self.high))

    def motion(self, parameters: float) -> Motion:
        return Motion(scale=parameters)


@dataclasses.dataclass(frozen=True)
class Flip(WholeScene):
    """Mirrors the scene: changes the sign of y (left and right) and of x (ahead and behind), each with a probability.

    If left and right change places, the images of cameras are mirrored too. Its parameters are two bools: x, y.
    """

    x: float = 0.0
    y: float = 0.5

    def check(self) -> None:
        for name, found in (("x", self.x), ("y", self.y)):
            if not 0 <= found <= 1:
                raise self.error(f"{name} = {found}: allowed are probabilities from 0 to 1.")

    def draw(self, rng: np.random.Generator, example: Example) -> tuple[bool, bool]:
        x, y = rng.random(2) < (self.x, self.y)
        return bool(x), bool(y)

    def motion(self, parameters: tuple[bool, bool]) -> Motion:
        return Motion.flip(*parameters)

    def apply(self, example: Example, parameters: tuple[bool, bool]) -> Example:
        return super().apply(example, parameters) if any(parameters) else example

    def inverse(self, example: Example, parameters: tuple[bool, bool]) -> Example:
        """Returns the example before `apply` with these parameters, bit by bit with few exceptions.

        Angles, poses, intrinsics and points in the frame of a sensor are equal up to rounding.
        """
        return super().inverse(example, parameters) if any(parameters) else example


@dataclasses.dataclass(frozen=True)
class Translate(WholeScene):
    """Shifts the scene by normally distributed metres along x, y and z of the ego frame.

    Its parameters are the metres, float64 `[3]`. The cameras move with the scene.
    """

    standard_deviation: tuple[float, float, float] = (0.2, 0.2, 0.2)

    def check(self) -> None:
        found = np.asarray(self.standard_deviation)
        if found.shape != (3,) or not (np.isfinite(found).all() and (found >= 0).all()):
            raise self.error(f"standard_deviation = {self.standard_deviation!r}: allowed are three numbers from 0.")

    def draw(self, rng: np.random.Generator, example: Example) -> np.ndarray:
        return rng.normal(size=3) * self.standard_deviation

    def motion(self, parameters: np.ndarray) -> Motion:
        return Motion(shift=np.asarray(parameters, np.float64))
