"""The programs of a bundle are measured on the given cores, each in a process of its own."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from engine.base.errors import ConfigError, RunError
from engine.bundles import bench
from engine.bundles.bench import Limit, Measurement, Options
from engine.bundles.manifest import BundleError
from tests.bundles import handmade

pytestmark = pytest.mark.multiprocess

HAS_ONNX = find_spec("onnxruntime") is not None or bench.PYTHON_VARIABLE in os.environ
CORE = max(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return handmade.write(tmp_path_factory.mktemp("bundles") / "handmade")


@pytest.fixture(scope="module")
def measured(bundle) -> tuple[list[Measurement], list[str]]:
    """Returns the measurements, and the sentences about them."""
    said: list[str] = []
    return bench.bench(bundle, Options(calls=40, warmup=3, cores=[CORE]), said.append), said


def test_each_program_is_measured(measured):
    found, said = measured
    assert [(one.entry, one.program) for one in found] == [("predict", "stablehlo"), ("predict", "onnx")][
        : 1 + HAS_ONNX
    ]
    for one in found:
        seconds = one.seconds
        assert 0 < seconds["p50"] <= seconds["p90"] <= seconds["p99"] <= seconds["worst"]
        assert (
            min(seconds["first"], seconds["load"]) > 0 and one.memory > 10 << 20 and (one.batch, one.calls) == (1, 40)
        )
        assert one.cores == [CORE]
    assert found[0].library.startswith("jax ") and found[0].library.endswith(", cpu")
    assert HAS_ONNX or said == [
        "predict onnx: not measured, since onnxruntime is not installed here. Add --onnx-python=PATH, a Python "
        "interpreter that has it, or set CONVOY_ONNX_PYTHON."
    ]


def test_layers_have_the_flops_of_the_model_and_measured_times(measured):
    product = 2 * handmade.IN * handmade.OUT
    for one in measured[0]:
        assert sum(layer.flops for layer in one.layers) == product
        assert any(layer.seconds > 0 for layer in one.layers)
    assert [layer.flops for layer in measured[0][0].layers if layer.name == "head"] == [product]


def test_memory_is_that_of_the_process_alone(bundle):
    ballast = bytearray(os.urandom(1 << 20)) * 500  # a fork has it until it starts the other program
    [found] = bench.bench(bundle, Options(calls=2, warmup=0, programs=("stablehlo",), batch=3))
    assert found.batch == 3 and found.memory < len(ballast)


def test_limit_of_a_number_is_exceeded_or_not(measured):
    def check(*texts: str) -> list[str]:
        return bench.check_limits([Limit.parse(text) for text in texts], measured[0])

    assert check("predict:p99:1000s", "predict:memory:90GiB") == []
    sentences = check("predict:p50:0.01us", "predict:memory:1KiB")
    assert len(sentences) == 2 * len(measured[0])
    assert sentences[0].startswith("predict stablehlo: p50 is ") and "above --limit=predict:p50:0.01us" in sentences[0]
    with pytest.raises(ConfigError, match=r"no entry point 'predct' was measured. Did you mean predict\?"):
        check("predct:p50:1s")


@pytest.mark.parametrize(
    ("text", "value"),
    [("a:p99:2ms", 2e-3), ("a:worst:150us", 150e-6), ("a:load:1.5s", 1.5), ("a:memory:2MiB", 2 << 20)],
)
def test_limits_have_units(text, value):
    found = Limit.parse(text)
    assert (found.entry, found.name, found.text) == ("a", text.split(":")[1], text)
    assert found.value == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "p99:2ms", "a:p95:2ms", "a:p99:2", "a:p99:2MiB", "a:memory:2ms", "a:p99:-1ms"])
def test_other_limits_are_refused(text):
    with pytest.raises(ConfigError, match="write ENTRY:NAME:VALUE, such as predict:p99:2ms"):
        Limit.parse(text)


def test_only_usable_cores_are_accepted():
    assert bench.checked_cores([]) == [min(os.sched_getaffinity(0))]
    with pytest.raises(ConfigError, match=r"--cores: core 4096 is not usable here\. Usable cores: "):
        bench.checked_cores([CORE, 4096])


def test_changed_bundle_is_not_measured(tmp_path):
    bundle = handmade.write(tmp_path / "changed")
    (bundle / handmade.WEIGHTS).write_bytes(b"something else")
    with pytest.raises(BundleError, match=r"weights.safetensors was changed"):
        bench.bench(bundle, Options())


def test_bundle_of_which_nothing_runs_is_an_error(bundle):
    with pytest.raises(BundleError, match="no program was measured"):
        bench.bench(bundle, Options(programs=("other",)))


def test_failure_of_a_measurement_is_one_sentence(bundle):
    onnx = Options(programs=("onnx",), onnx_python=f"{bundle}/python")
    with pytest.raises(ConfigError, match="python: cannot be started"):
        bench.bench(bundle, onnx)
    with pytest.raises(RunError, match="a measurement failed: predict onnx: onnxruntime is not installed"):
        bench.bench(bundle, Options(programs=("onnx",), onnx_python=str(without_packages(bundle.parent))))


def test_other_interpreter_gets_no_packages_of_this_one(bundle, tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "packages: $PYTHONPATH." >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    with pytest.raises(RunError, match=r"a measurement failed: packages: \.$"):
        bench.bench(bundle, Options(programs=("onnx",), onnx_python=str(program)))


def without_packages(folder: Path) -> Path:
    """Returns a program that starts Python with numpy, but without onnxruntime."""
    program = folder / "python"
    program.write_text(
        f"#!{sys.executable}\nimport runpy, sys\nsys.modules['onnxruntime'] = None\nsys.path[:] = {sys.path!r}\n"
        "sys.argv = sys.argv[1:]\nsys.path.insert(0, sys.argv[0].rpartition('/')[0])\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    program.chmod(0o755)
    return program
