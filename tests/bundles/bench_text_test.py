"""Tables of measurements."""

from engine.bundles import bench_text
from engine.bundles.bench import Measurement
from engine.bundles.layer_costs import Layer

SECONDS = {"p50": 1e-3, "p90": 1.5e-3, "p99": 2e-3, "worst": 0.25, "first": 0.5, "load": 2.0, "import": 1.0}
LAYERS = (
    Layer("hidden/0", ("dot", "max"), 6e-4, 2048, 1024),
    Layer("head", ("dot",), 3e-4, 512, 512),
    Layer("rest", (), 1e-4, 0, 8),
)


def measurement(program, library, seconds, layers=()):
    return Measurement("predict", program, library, 2, 1000, [0, 1], seconds, 64 << 20, layers)


def test_table_has_a_line_for_each_program_and_its_largest_layers():
    eager = {name: 10 * value for name, value in SECONDS.items()}
    found = [measurement("stablehlo", "jax 0.12, cpu", SECONDS, LAYERS), measurement("eager", "jax 0.12", eager)]
    assert bench_text.text(found, 2).splitlines() == [
        "1,000 calls on cores 0, 1",
        "entry    program    runs with      batch  p50      p90      p99      worst   first   load    memory",
        "predict  stablehlo  jax 0.12, cpu  2      1.00 ms  1.50 ms  2.00 ms  250 ms  500 ms  2.00 s  64.0 MiB",
        "predict  eager      jax 0.12       2      10.0 ms  15.0 ms  20.0 ms  2.50 s  5.00 s  20.0 s  64.0 MiB",
        "predict: stablehlo takes 0.1 of the time of the eager model (p50)",
        "",
        "predict stablehlo: the layers of a call, with a profiler: 1.00 ms, 2,560 FLOPs, 1.5 KiB",
        "  layer     time    share  FLOPs  bytes    operations",
        "  hidden/0  600 us  60%    2,048  1.0 KiB  dot, max",
        "  head      300 us  30%    512    512 B    dot",
        "  1 others  100 us  10%    0      8 B",
    ]
    assert "hidden/0" not in bench_text.text(found, 0)


def test_json_has_seconds_and_bytes():
    [found] = bench_text.to_json([measurement("onnx", "onnxruntime", SECONDS, LAYERS[:1])])
    assert found["seconds"]["p99"] == 2e-3 and found["memory"] == 64 << 20 and found["cores"] == [0, 1]
    assert list(found["layers"]) == [
        {"name": "hidden/0", "operations": ("dot", "max"), "seconds": 6e-4, "flops": 2048, "bytes": 1024}
    ]
