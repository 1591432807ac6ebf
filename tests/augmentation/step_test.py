import dataclasses
import pickle

import numpy as np
import pytest

from engine.augmentation import Augmentation, Flip, Rotate, Scale, Scene
from engine.augmentation.step import replace, step_generators
from engine.base.errors import DataError
from engine.data.sampling.shuffle import random_generators


def draws(*steps, position=5):
    rng = random_generators(7, np.array([position]))[0]
    found = step_generators(rng, steps)
    return {step.key: generator.random(4).tolist() for step, generator in zip(steps, found, strict=True)}, rng


def test_generators_depend_on_the_name_and_the_position_only():
    alone, _ = draws(Rotate())
    others, rng = draws(Scale(), Rotate(10), Flip())
    assert alone["Rotate"] == others["Rotate"]
    assert len({tuple(found) for found in others.values()}) == 3
    assert draws(Rotate(), position=6)[0] != alone
    assert draws(Rotate(name="second"))[0]["second"] != alone["Rotate"]
    assert rng.random() == random_generators(7, np.array([5]))[0].random()  # it was not advanced


def test_settings_are_frozen_picklable_and_parsed():
    step = Rotate(10, scene={"points": "lidar"}, probability=0.5)
    assert step.scene == Scene(points="lidar") and pickle.loads(pickle.dumps(step)) == step
    with pytest.raises(dataclasses.FrozenInstanceError):
        step.degrees = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert replace(step, degrees=20).degrees == 20


def test_subclass_names_what_it_does_not_define():
    with pytest.raises(NotImplementedError, match="Augmentation defines no draw"):
        Augmentation().draw(np.random.default_rng(0), {})
    with pytest.raises(DataError, match=r"Rotate: degrees = \(1, 2, 3\)"):
        Rotate((1, 2, 3))  # pyright: ignore[reportArgumentType]
