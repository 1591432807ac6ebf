"""Bundles as a pytree: names, numbers of rows and missing datasets survive what the engine does with a batch."""

import pickle

import jax
import numpy as np

from engine.data.text import without_text
from engine.joint.bundles import Bundles

BUNDLES = Bundles({"lanes": {"y": np.ones(2)}, "boxes": {"x": np.zeros((2, 3))}}, {"boxes": 3, "lanes": 1, "lines": 1})


def test_bundles_survive_maps_and_pickling():
    for found in (jax.tree.map(lambda x: x + 1, BUNDLES), pickle.loads(pickle.dumps(BUNDLES)), without_text(BUNDLES)):
        assert isinstance(found, Bundles) and found.rows == BUNDLES.rows and found.absent == ["lines"]
        assert {*found} == {"boxes", "lanes"}
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(BUNDLES)]
    assert paths == ["boxes/x", "lanes/y"]


def test_bundles_of_other_datasets_or_rows_have_other_structures():
    structures = {
        jax.tree.structure(found)
        for found in (BUNDLES, Bundles(BUNDLES, {**BUNDLES.rows, "boxes": 2}), Bundles({"lines": 0}, BUNDLES.rows))
    }
    assert len(structures) == 3
    assert jax.tree.structure(Bundles(dict(sorted(BUNDLES.items())), BUNDLES.rows)) in structures
