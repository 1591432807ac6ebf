"""A bundle that the lowest supported JAX has written runs with the installed one.

The fixture was written with the packages of requirements_min.lock:

    export_bundle(subjects.reader_run(), "tests/bundles/fixtures/jax_0_11_2.zip")
"""

import tomllib
from pathlib import Path

from engine.bundles import parity
from engine.bundles.bundle import Bundle

TOP = Path(__file__).parents[2]


def test_bundle_of_the_lowest_version_computes_its_samples():
    found = Bundle(Path(__file__).parent / "fixtures" / "jax_0_11_2.zip")
    found.check_files()
    required = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"jax>={found.manifest['versions']['jax']}" in required
    for name, entry in found.entries.items():
        inputs, outputs = found.samples(name)
        assert max(parity.differences(found.function(name)(inputs), outputs).values()) <= entry.tolerance
    assert sorted(found.entries) == ["certain", "embed", "predict"]
