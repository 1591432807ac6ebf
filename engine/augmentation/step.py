"""`Augmentation`, the base class of the augmentations, and the random generators of a list of them.

Each augmentation has a generator of its own, which depends on the seed, the position of the example in the run, and the
name of the augmentation. So adding or removing one does not change what the others draw.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import xxhash

from engine.augmentation.scene import Scene
from engine.base.errors import DataError
from engine.data.examples import Example
from engine.data.sampling.shuffle import random_generators
from engine.data.source import BaseSource


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Base class: a frozen dataclass of settings. A subclass defines `draw` and `apply`, which must be pure.

    A window of frames, whose entries have a leading dimension of time, gets one draw.
    """

    name: str = dataclasses.field(default="", kw_only=True)
    """Name, of which the draws depend; by default that of the class. Two in one list need different names."""
    probability: float = dataclasses.field(default=1.0, kw_only=True)
    """Probability with which it is applied to an example."""
    scene: Any = dataclasses.field(default=None, kw_only=True)
    """Description of the example, a `Scene`; by default that of `engine.augmented`."""

    def __post_init__(self) -> None:
        if self.scene is not None:
            object.__setattr__(self, "scene", Scene.parse(self.scene))
        if not 0 <= self.probability <= 1:
            raise self.error(f"probability = {self.probability}: allowed are numbers from 0 to 1.")
        self.check()

    def check(self) -> None:
        """Raises DataError for a setting that is out of its range."""

    def prepared(self, source: BaseSource) -> Self:
        """Returns the augmentation with what it needs of the training source, such as a database of objects."""
        return self

    def fingerprint(self) -> str:
        """Returns a hash of the data that it uses besides the example; "" if there is none."""
        return ""

    def draw(self, rng: np.random.Generator, example: Example) -> Any:
        """Returns random parameters, such as an angle."""
        raise NotImplementedError(f"{type(self).__qualname__} defines no draw.")

    def apply(self, example: Example, parameters: Any) -> Example:
        """Returns the example, changed by these parameters; arrays of the given one are not modified.

        Raises:
            DataError: an entry that `scene` names is missing, or has another shape or dtype.
        """
        raise NotImplementedError(f"{type(self).__qualname__} defines no apply.")

    def completed(self, example: Example) -> Example:
        """Returns an example that is not augmented with the entries that `apply` adds, as evaluations read it."""
        return example

    @property
    def key(self) -> str:
        """Its name, or that of its class, of which the draws depend."""
        return self.name or type(self).__name__

    @property
    def where(self) -> str:
        """Its name in the texts of errors."""
        return f"augmentation {self.key}"

    @property
    def described(self) -> Scene:
        """The description of the example. Raises DataError if there is none."""
        if self.scene is None:
            raise self.error("there is no description of the example. Pass `scene` to engine.augmented, or to it.")
        return self.scene

    def error(self, text: str) -> DataError:
        """Returns an error of this augmentation."""
        return DataError(f"{self.where}: {text}")

    def range(self, name: str, low: float = -np.inf, high: float = np.inf) -> tuple[float, float]:
        """Returns a setting that is a pair (low, high), or one number for (-number, number).

        Raises:
            DataError: it is neither, or not within `low` and `high`.
        """
        found = getattr(self, name)
        pair = found if isinstance(found, list | tuple) else (-found, found)
        if len(pair) != 2 or not low <= pair[0] <= pair[1] <= high:
            limits = "" if (low, high) == (-np.inf, np.inf) else f" between {low} and {high}"
            raise self.error(f"{name} = {found!r}: allowed are two increasing numbers{limits}.")
        return float(pair[0]), float(pair[1])


def replace[Step: Augmentation](step: Step, **changes: Any) -> Step:
    """Returns an augmentation with other settings."""
    return dataclasses.replace(step, **changes)


def step_generators(rng: np.random.Generator, steps: Sequence[Augmentation]) -> list[np.random.Generator]:
    """Returns a random generator for each augmentation. It depends on its name and `rng`, which is not advanced."""
    state = repr(rng.bit_generator.state)
    keys = [xxhash.xxh3_64_intdigest(f"{step.key}\0{state}".encode()) for step in steps]
    return random_generators(0, np.array(keys, np.uint64))
