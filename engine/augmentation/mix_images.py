"""`MixImages`: mixup and CutMix of an image with that of another example, for the training of classifiers.

The other example is drawn from the whole source, and not from the batch. So an example depends on its position in the
run only, and accumulated microbatches equal the whole batch.
"""

import dataclasses
from typing import NamedTuple, Self

import numpy as np

from engine.augmentation.entries import entry
from engine.augmentation.step import Augmentation
from engine.data.context import call
from engine.data.examples import Example
from engine.data.source import BaseSource, source_name

SEEDS = 2**63


class MixDraw(NamedTuple):
    """Parameters of `MixImages`."""

    other: int
    """Index of the other example in the source."""
    seed: int
    """Of the transform of the source, for the other example."""
    share: float
    """Of the example in the mixed image, 0..1; before the rectangle is cut at the border."""
    center: tuple[float, float] | None
    """Of the rectangle that shows the other image, as shares of the height and the width; None for mixup."""


@dataclasses.dataclass(frozen=True)
class MixImages(Augmentation):
    """Mixes the image of an example with another one: mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019).

    Mixup averages two images; CutMix puts a rectangle of the other one into it. The share of the example is drawn from
    a beta distribution with both parameters `mixup` or `cutmix`. The label stays, and two entries are added, which the
    loss of the Task reads: `other_label`, as the label, and `other_share`, float32, the share of the other image:

        losses = (1 - other_share) * loss(label) + other_share * loss(other_label)

    An example that is not mixed has share 0. Only the source's own transform is applied to the other image, so this
    augmentation should be the first. Other sources, such as that of an evaluation, do not have these entries.
    """

    mixup: float = 0.8
    """Parameter of the beta distribution of mixup; 0: no mixup."""
    cutmix: float = 1.0
    """Parameter of the beta distribution of CutMix; 0: no CutMix."""
    switch: float = 0.5
    """Share of CutMix where both have a parameter."""
    share: float = 1.0
    """Share of the examples that are mixed."""
    image: str = "image"
    """Entry with the image, `[rows, columns]` or `[rows, columns, channels]`: uint8 or floating-point."""
    label: str = "label"
    """Entry with the label."""
    source: BaseSource | None = dataclasses.field(default=None, repr=False, compare=False)
    """Source of the other images; by default that of `engine.augmented`."""

    def check(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= (found := getattr(self, name)) < np.inf:
                raise self.error(f"{name} = {found}: allowed are numbers from 0.")
        for name in ("switch", "share"):
            if not 0 <= (found := getattr(self, name)) <= 1:
                raise self.error(f"{name} = {found}: allowed are numbers from 0 to 1.")
        if not self.mixup and not self.cutmix:
            raise self.error("mixup and cutmix are 0, so nothing is mixed. Give one of them, such as mixup = 0.2.")
        if self.probability != 1:
            raise self.error(
                "probability would leave out the new entries of an example. Set share, the share that is mixed."
            )

    def prepared(self, source: BaseSource) -> Self:
        if source.reads_stream:
            raise self.error(
                f"{source_name(source)} is read in order, and the other example needs an index. Use a source with "
                "random access."
            )
        return self if self.source is not None else dataclasses.replace(self, source=source)

    def draw(self, rng: np.random.Generator, example: Example) -> MixDraw:
        cuts = bool(rng.random() < (self.switch if self.mixup and self.cutmix else float(not self.mixup)))
        parameter = self.cutmix if cuts else self.mixup
        share, center = float(rng.beta(parameter, parameter)), (float(rng.random()), float(rng.random()))
        other, seed = int(rng.integers(len(self._source))), int(rng.integers(SEEDS))
        mixed = rng.random() < self.share
        return MixDraw(other, seed, share if mixed else 1.0, center if cuts and mixed else None)

    def apply(self, example: Example, parameters: MixDraw) -> Example:
        image, label = (np.asarray(entry(example, name, self.where)) for name in (self.image, self.label))
        if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
            raise self.error(f"{self.image} is {image.dtype}. Allowed are uint8 and floating-point images.")
        if parameters.share == 1:
            return self.completed(example)
        other = self._other(parameters)
        other_image, other_label = (np.asarray(entry(other, name, self.where)) for name in (self.image, self.label))
        if other_image.shape != image.shape:
            raise self.error(
                f"{self.image} has the shapes {image.shape} and {other_image.shape}. Mixed images need one shape: "
                "resize them in the source or in its transform."
            )
        if parameters.center is None:
            mixed, share = parameters.share * image + (1 - parameters.share) * other_image, 1 - parameters.share
            mixed = np.rint(mixed) if image.dtype == np.uint8 else mixed
        else:
            rows, columns = rectangle(image.shape, parameters.share, parameters.center)
            mixed = image.copy()
            mixed[rows, columns] = other_image[rows, columns]
            share = (rows.stop - rows.start) * (columns.stop - columns.start) / (image.shape[0] * image.shape[1])
        entries = {"other_label": other_label.astype(label.dtype), "other_share": np.float32(share)}
        return {**example, self.image: mixed.astype(image.dtype), **entries}

    def completed(self, example: Example) -> Example:
        return {**example, "other_label": entry(example, self.label, self.where), "other_share": np.float32(0)}

    def _other(self, parameters: MixDraw) -> Example:
        other = self._source[parameters.other]
        if self._source.has_transform:
            other = call(self._source.transform, other, np.random.default_rng(parameters.seed), context=None)
        return other

    @property
    def _source(self) -> BaseSource:
        if self.source is None:
            raise self.error("it has no source. engine.augmented gives it; or pass `source`.")
        return self.source


def rectangle(shape: tuple[int, ...], share: float, center: tuple[float, float]) -> tuple[slice, slice]:
    """Returns rows and columns of a rectangle with 1 - `share` of the area, which is cut at the border of the image."""
    found = []
    for size, middle in zip(shape[:2], center, strict=True):
        half = size * np.sqrt(1 - share) / 2
        low, high = np.clip(np.rint([middle * size - half, middle * size + half]).astype(int), 0, size)
        found.append(slice(int(low), int(high)))
    return found[0], found[1]
