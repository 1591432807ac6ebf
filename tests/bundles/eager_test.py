"""The eager model computes what the bundle of its run does, operation by operation."""

import numpy as np
import pytest

from engine.base.errors import ConfigError
from engine.bundles.eager import eager_function
from engine.bundles.export import export_bundle
from tests.bundles import subjects


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return export_bundle(subjects.reader_run(), tmp_path_factory.mktemp("out") / "reader", on_message=lambda text: None)


@pytest.mark.parametrize("name", ["predict", "certain", "embed"])
def test_each_entry_point_computes_the_samples(name, bundle):
    inputs, outputs = bundle.samples(name)
    call = eager_function(subjects.reader_run(), bundle.manifest, name, len(next(iter(inputs.values()))))
    found = call(inputs)
    assert set(found) == set(outputs)
    for output, expected in outputs.items():
        np.testing.assert_allclose(found[output], expected, rtol=1e-5, atol=1e-6)


def test_model_with_memory_keeps_its_state(tmp_path):
    bundle = export_bundle(subjects.track_run(), tmp_path / "track", on_message=lambda text: None)
    inputs, outputs = bundle.samples("predict")
    state = bundle.entry("predict").state
    call = eager_function(subjects.track_run(), bundle.manifest, "predict", 1)
    frames = len(outputs["sum"])
    assert state and frames > 2
    found = [
        call({name: x if name in state else x[frame] for name, x in inputs.items()})["sum"] for frame in range(frames)
    ]
    np.testing.assert_allclose(np.stack(found), outputs["sum"], rtol=1e-5, atol=1e-6)


def test_checkpoint_of_another_run_is_refused(bundle):
    with pytest.raises(ConfigError, match=r"--eager=.*: has not the checkpoint of the bundle, which is step 4"):
        eager_function(subjects.track_run(), bundle.manifest, "predict", 1)
