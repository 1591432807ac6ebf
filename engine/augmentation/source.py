"""`augmented`: a source whose examples are augmented in training, with the random generator of their position.

Where a source has an order of its own, such as a mixture, its sampler is wrapped: the example of a position is located
in the source that has it, whose own transform runs first.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.augmentation.padding import padding_source, restore_padding, without_padding
from engine.augmentation.scene import Scene
from engine.augmentation.step import Augmentation, replace, step_generators
from engine.base.errors import ConvoyError, DataError
from engine.base.types import PyTree
from engine.data.adapt import Readable, as_source, counted
from engine.data.context import Context, call, names_total_steps
from engine.data.examples import Example
from engine.data.sampling.sampler import Sampler, make_sampler
from engine.data.source import (
    SEPARATOR,
    BaseSource,
    example_spec,
    first_example,
    inner_sources,
    limited,
    source_name,
)

OWN = {
    *("new_arrays", "source_name", "source", "documents", "sources", "paths", "folder", "file_states", "known_names"),
    *("reads_stream", "delegate", "defines", "keeps", "has_take", "has_transform", "has_new_arrays", "has_sampler"),
    *("transform", "sampler", "batch_sampler", "fingerprint", "limited", "with_run", "counted", "measured"),
    *("is_weighted", "weighted_order", "known_field_lengths"),
}
"""Members of a source that an augmented one does not take over: its own, and those that name what a source reads."""
DELEGATED = [name for name in vars(BaseSource) if not name.startswith("_") and name not in OWN]
OF_SAMPLER = [name for name in vars(Sampler) if not name.startswith("_") and name not in ("has_transform", "costs")]


def augmented(source: Readable, steps: Sequence[Augmentation], scene: Any = None) -> BaseSource:
    """Returns a source whose examples are changed by random augmentations, in training only.

    Step by step, each augmentation draws its parameters and is applied, after the source's own transform. The draws
    depend on the seed of the run, the position of the example in the run, and the name of the augmentation. So a resume
    gives the same examples, and adding or removing one augmentation does not change the draws of the others.
    Evaluations and predictions read the examples of the source as they are. Padding is removed before the first
    augmentation, and restored after the last one.

    Args:
        source: any source or stream. Of a mixture, the examples of all parts are augmented.
        steps: augmentations of `engine.augmentation`, in the order in which they are applied.
        scene: an `engine.augmentation.Scene`, or a dict of its fields: what the entries of an example are. It is that
            of each augmentation without one.

    Raises:
        DataError: an argument is invalid, or the first example does not fit the description.
    """
    return Augmented(as_source(source, "engine.augmented: source"), steps, scene)


class Augmented(BaseSource):
    """The source that `augmented` returns."""

    def __init__(self, source: BaseSource, steps: Sequence[Augmentation], scene: Any = None):
        """Takes the arguments of `augmented`, with a `BaseSource`."""
        self.source, self.source_name = source, f"engine.augmented({source_name(source)})"
        _check_rows(source, source)
        self.steps = _checked(steps, None if scene is None else Scene.parse(scene), source)
        self._scene = scene
        self._init()
        _check_first(source, self)

    def _init(self) -> None:
        """Takes over the members of the source."""
        self.new_arrays = not self.source.has_transform or self.source.has_new_arrays  # the steps modify no array
        self.delegate(self.source, *DELEGATED)
        self.tag_names = self.source.tag_names
        if self.source.has_transform and names_total_steps(self.source.transform):
            self.transform = self._transform_by_total
        if any(type(step).completed is not Augmentation.completed for step in self.steps):
            self.shape_specs, self.has_take = self._shape_specs, False  # those of the source lack the new entries
        if self.source.has_sampler:
            self.sampler, self.batch_sampler = self._sampler, self._sampler

    def _with(self, source: BaseSource) -> "Augmented":
        """Returns the augmentation of another source, such as a part of this one."""
        found = object.__new__(Augmented)
        found.source, found.source_name, found.steps, found._scene = source, self.source_name, self.steps, self._scene
        found._init()
        return found

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return functools.reduce(lambda example, step: step.completed(example), self.steps, self.source[index])

    def _shape_specs(self) -> list[PyTree]:
        """Returns the specs of the source, with the entries that the augmentations add."""
        own = example_spec(self)
        return [{**own, **spec} for spec in self.source.shape_specs()]

    @functools.cached_property
    def measured(self) -> bool:
        """Whether the lengths of the examples are known without reading them, if they are ragged."""
        return self.source.measured

    def fingerprint(self) -> str:
        own = [text for step in self.steps if (text := step.fingerprint())]
        return SEPARATOR.join([self.source.fingerprint(), *own])

    def limited(self, count: int) -> "Augmented":
        """Returns a source of the first `count` examples."""
        return self._with(limited(self.source, count))

    def with_run(self, examples: int) -> "Augmented":
        """Returns the source for a run of so many examples (`sampling/share_schedule.py`)."""
        return self._with(self.source.with_run(examples))

    def counted(self) -> "Augmented":
        """Returns a source of known length, for which it reads streams of unknown length once."""
        return self._with(counted(self.source))

    def transform(self, example: Example, rng: np.random.Generator, context: Context | None = None) -> Example:
        """Returns the example after the transform of the source and all augmentations."""
        return transformed(self.source, self.steps, example, rng, context)

    def _sampler(self, seed: int, shuffle: bool, batch_size: int | None = None) -> Sampler:
        inner = make_sampler(self.source, seed, shuffle, batch_size)
        try:
            inner.locate(int(inner.addresses(np.array([0]))[0]))
        except NotImplementedError as error:
            raise DataError(
                f"engine.augmented: a row of {source_name(self.source)} is no example of one source. Augment each of "
                "its sources instead."
            ) from error
        return _AugmentedSampler(inner, self)

    def _transform_by_total(
        self, example: Example, rng: np.random.Generator, context: Context | None = None
    ) -> Example:
        """As `transform`, of a source whose transform names `context.total_steps`, which `api/train.py` looks for."""
        assert context is None or context.total_steps >= 0
        return transformed(self.source, self.steps, example, rng, context)


def transformed(
    source: BaseSource,
    steps: Sequence[Augmentation],
    example: Example,
    rng: np.random.Generator,
    context: Context | None,
) -> Example:
    """Returns an example of a source after its own transform and the augmentations; `rng` is that of its position."""
    generators = step_generators(rng, steps)  # before the transform, on whose draws they do not depend
    if source.has_transform:
        example = call(source.transform, example, rng, context=context)
    example, padding = without_padding(source, example)
    for step, generator in zip(steps, generators, strict=True):
        if generator.random() < step.probability:
            example = step.apply(example, step.draw(generator, example))
    return restore_padding(example, padding)


class _View(BaseSource):
    """A source within an augmented one, whose examples are augmented."""

    def __init__(self, source: BaseSource, augmented: Augmented):
        self.source, self._steps, self.source_name = source, augmented.steps, augmented.source_name
        self.new_arrays = not source.has_transform or source.has_new_arrays

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.source[index]

    def transform(self, example: Example, rng: np.random.Generator, context: Context | None = None) -> Example:
        return transformed(self.source, self._steps, example, rng, context)


class _AugmentedSampler(Sampler):
    """The sampler of the source, whose examples are augmented."""

    has_transform = True

    def __init__(self, inner: Sampler, augmented: Augmented):
        self._inner, self._augmented = inner, augmented
        self._views: list[_View] = []
        for name in OF_SAMPLER:
            setattr(self, name, getattr(inner, name))
        self.locate = self._locate

    def _locate(self, address: int) -> tuple[BaseSource, int]:
        """Returns the source of an example, whose `transform` runs the augmentations, too."""
        source, index = self._inner.locate(address)
        view = next((view for view in self._views if view.source is source), None)
        if view is None:
            view = _View(source, self._augmented)
            self._views.append(view)
        return view, index

    def costs(self, addresses: np.ndarray, source: BaseSource) -> np.ndarray:
        inner = self._augmented.source if source is self._augmented else source
        return self._inner.costs(addresses, inner)


def _checked(steps: Sequence[Augmentation], scene: Scene | None, source: BaseSource) -> tuple[Augmentation, ...]:
    """Returns the augmentations with the description and what they need of the source."""
    found: list[Augmentation] = []
    for number, step in enumerate(steps):
        if not isinstance(step, Augmentation):
            raise DataError(
                f"engine.augmented: steps[{number}] is a {type(step).__name__}, allowed is an augmentation such as "
                "engine.augmentation.Rotate(). In a config, name its class: {'target': 'engine.augmentation.Rotate'}."
            )
        if any(step.key == other.key for other in found):
            raise DataError(
                f"engine.augmented: two steps are named {step.key}, and the draws depend on the name. Give one of "
                f"them another: {type(step).__name__}(..., name='second')."
            )
        step = replace(step, scene=scene) if step.scene is None else step
        found.append(step.prepared(source))
    if not found:
        raise DataError("engine.augmented: steps is empty. Name at least one augmentation.")
    return tuple(found)


def _check_rows(source: BaseSource, given: BaseSource) -> None:
    """Raises DataError for a source whose rows hold several examples."""
    from engine.data.ragged.packing import Packed

    if isinstance(source, Packed):
        raise DataError(
            f"engine.augmented: a row of {source_name(given)} holds several packed examples, and an augmentation draws "
            "once for each row. Use Padded or Bucketed instead of Packed."
        )
    for inner in inner_sources(source):
        _check_rows(inner, given)


def _check_first(source: BaseSource, augmented: Augmented) -> None:
    """Applies the augmentations to the first example, to report a description that does not fit it at the start."""
    if _has_own_transform(source):  # which may make the entries
        return
    try:
        example = first_example(source)
    except ConvoyError:
        return  # reported where the training reads it
    if (padded := padding_source(source)) is not None:
        example, _ = without_padding(padded, example)
    for step in augmented.steps:
        example = step.apply(example, step.draw(np.random.default_rng(0), example))


def _has_own_transform(source: BaseSource) -> bool:
    return source.has_transform or any(map(_has_own_transform, inner_sources(source)))
