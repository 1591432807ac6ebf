"""The export of one entry point."""

import numpy as np
import pytest

import engine
from engine.bundles import bundle
from engine.bundles.entry_export import EntryExporter
from engine.bundles.exported import Entry
from engine.bundles.manifest import BundleError
from engine.bundles.options import Options
from engine.bundles.samples import sample_data
from tests.bundles import subjects


@pytest.fixture(scope="module")
def exporter():
    """Returns an exporter of `predict` with three rows, of which each input is cut or padded to its size."""
    run = subjects.reader_run()
    found = engine.load(run)
    data = sample_data(found, None)
    return EntryExporter(found, data, Entry("predict"), Options(rows=3, platforms=("cpu",)), lambda text: None)


def test_files_and_weights_are_those_of_the_entry_point(exporter):
    found = exporter.export(None)
    assert sorted(found.files) == ["predict.stablehlo", "samples/predict.safetensors"]
    arrays = bundle.load_arrays(found.files["samples/predict.safetensors"])
    assert arrays["inputs/x"].shape == (3, 16) and arrays["outputs/scores/all"].shape == (3, 4)
    assert found.entry.inputs["x"].shape == (3, 16) and found.entry.programs["stablehlo"]["parity"]["class"] == 0.0
    assert {name.split("/")[0] for name in found.weights} == {"hidden", "head"}


def test_program_with_another_result_is_refused(exporter):
    wrong = {name: x.copy() for name, x in exporter.expected[0].items()}
    wrong["scores/all"] += 0.01
    with pytest.raises(BundleError, match=r"output scores/all of the ONNX program differs from the engine by 0.01"):
        exporter.parity([wrong], "ONNX")
    exact = {name: np.asarray(x) for name, x in exporter.expected[0].items()}
    assert exporter.parity([exact], "ONNX") == {"class": 0.0, "scores/all": 0.0}
