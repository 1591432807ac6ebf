"""The C++ program in examples/cpp computes what the samples of a bundle say, without Python."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.bundles import handmade

INCLUDE = Path("/usr/include")
ABSENT = [name for name in ("cmake", "g++") if shutil.which(name) is None]
ABSENT += [
    package
    for package, file in (
        ("libonnxruntime-dev", "onnxruntime/onnxruntime_cxx_api.h"),
        ("nlohmann-json3-dev", "nlohmann/json.hpp"),
    )
    if not (INCLUDE / file).exists()
]
pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(bool(ABSENT) and "CI" not in os.environ, reason=f"not installed: {', '.join(ABSENT)}"),
]
SOURCES = Path(__file__).resolve().parents[2] / "examples" / "cpp"
SAMPLES = handmade.SAMPLES


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """Builds the program with the libraries of the system."""
    folder = tmp_path_factory.mktemp("build")
    # Without optimization, the compiler takes half of the time.
    words = [
        "cmake",
        "-S",
        SOURCES,
        "-B",
        folder,
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror",
    ]
    for command in (words, ["cmake", "--build", folder]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run_bundle"


@pytest.fixture
def bundle(tmp_path) -> Path:
    return handmade.write(tmp_path / "handmade")


def run(program: Path, bundle: Path) -> tuple[int, str, str]:
    """Returns the exit code, the output, and the errors without those of Debian's onnxruntime, which mean nothing."""
    done = subprocess.run([program, bundle], capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if line and not line.startswith("Schema error: ")]
    return done.returncode, done.stdout, "\n".join(errors)


def printed(output: str) -> dict[str, np.ndarray]:
    """Returns the printed arrays by name."""
    found = {}
    for name, dtype, shape, numbers in re.findall(r"^predict (\S+) (\w+)\[([\d,]*)\]: (.*)$", output, re.MULTILINE):
        values = np.array([float(text) for text in numbers.split()])
        found[name] = values.astype(dtype).reshape([int(size) for size in shape.split(",")])
    return found


def test_numbers_are_those_of_python(program, bundle):
    code, output, errors = run(program, bundle)
    assert (code, errors) == (0, "")
    samples, found = load_file(bundle / SAMPLES), printed(output)
    assert set(found) == {"class", "score"}
    assert found["class"].dtype == np.int32
    np.testing.assert_array_equal(found["class"], samples["outputs/class"])
    np.testing.assert_allclose(found["score"], samples["outputs/score"], rtol=0, atol=1e-5)
    assert len(re.findall(r"largest difference \S+ of 1e-05 allowed", output)) == 2


def test_model_with_memory_gets_its_state_from_frame_to_frame(program, tmp_path):
    bundle = handmade.write_with_memory(tmp_path / "memory")
    code, output, errors = run(program, bundle)
    assert (code, errors) == (0, "")
    assert printed(output)["state/sum"].tolist() == [[11], [13], [16]]
    assert output.count("largest difference 0 of 1e-05 allowed") == 2


def test_other_numbers_than_the_samples_are_an_error(program, bundle):
    arrays = load_file(bundle / SAMPLES)
    save_file({**arrays, "outputs/score": arrays["outputs/score"] + np.float32(3e-5)}, bundle / SAMPLES)
    code, output, errors = run(program, bundle)
    assert (code, errors) == (1, "run_bundle: an output differs from the samples")
    assert "predict score: largest difference 3e-05 of 1e-05 allowed" in output
    save_file({**arrays, "outputs/class": 1 - arrays["outputs/class"]}, bundle / SAMPLES)
    code, output, errors = run(program, bundle)
    assert code == 1 and "predict class: largest difference inf" in output


def test_damaged_bundle_is_one_sentence(program, bundle, tmp_path):
    assert run(program, tmp_path / "nowhere")[::2] == (1, f"run_bundle: {tmp_path}/nowhere/bundle.json: cannot be read")
    samples = bundle / SAMPLES
    content = samples.read_bytes()
    for size in (4, 100, len(content) - 1):
        samples.write_bytes(content[:size])
        code, _, errors = run(program, bundle)
        assert code == 1 and errors == f"run_bundle: {samples}: was cut"
    samples.write_bytes(content)
    (bundle / "predict.onnx").write_bytes((bundle / "predict.onnx").read_bytes()[:100])
    code, _, errors = run(program, bundle)
    assert code == 1 and errors.startswith("run_bundle: Load model from")
