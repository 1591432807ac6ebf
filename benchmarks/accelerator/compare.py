"""Compares a function on the device with the same function in float32 on the CPU: its result and its gradient."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from benchmarks.accelerator.context import Context
from benchmarks.accelerator.runner import last_line
from engine.config.schema import MeshSpec
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import make_mesh

type Floats = Mapping[str, Any]
type Integers = Mapping[str, Any]
type Function = Callable[[Floats, Integers], jax.Array]
type WithGradients = Callable[[Floats, Integers, jax.Array], tuple[jax.Array, Floats]]
"""Returns the result, and the gradients for a gradient of the result."""
type Result = tuple[tuple[np.ndarray, dict[str, np.ndarray]], str]
"""The result and its gradients, and the optimized HLO."""

TOLERANCES = {"bfloat16": (1e-2, 2e-2), "float32": (2e-3, 4e-3)}
"""Largest errors of the result and of a gradient, as ‖found - expected‖ / ‖expected‖. GPUs compute products of float32
in TF32, which has 10 bits of mantissa."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: name of the case.
        function: what is compared.
        floats: numpy arrays for which there are gradients.
        integers: further numpy arrays.
        dtype: dtype of the floats on the device.
        reference: cases with the same text have the same function and arrays, so one reference serves all.
        slack: factor on the tolerances, for many layers in sequence.
        kernel: whether GPUs and TPUs are meant to use their attention kernel.
        with_gradients: takes the place of the function and its gradient on the device.
        layout: settings of the layout on the device.
        mesh: axes of the mesh on the device; one device without them.
    """

    name: str
    function: Function
    floats: Mapping[str, np.ndarray]
    integers: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    dtype: str = "bfloat16"
    reference: str = ""
    slack: float = 1.0
    kernel: bool = False
    with_gradients: WithGradients | None = None
    layout: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)


def noise(shape: tuple[int, ...], name: str, scale: float = 1.0) -> np.ndarray:
    """Returns random numbers that bfloat16 represents exactly, so that each dtype starts with the same."""
    values = np.random.default_rng(zlib.crc32(name.encode())).normal(0, scale, shape)
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def with_gradients(
    function: Function, floats: Floats, integers: Integers, d_out: jax.Array
) -> tuple[jax.Array, Floats]:
    """Returns the result of a function, and its gradients for the gradient `d_out` of the result."""
    out, pull = jax.vjp(lambda floats: function(floats, integers), floats)
    return out, pull(d_out.astype(out.dtype))[0]


def compare(context: Context, cases: list[Case]) -> None:
    """Records the errors of each case. A case that fails or is above its tolerance makes the row a failed one."""
    bad: list[str] = []
    references: dict[str, Result] = {}
    for case in cases:
        try:
            passed = _compare(context, case, references)
        except Exception as error:  # one kernel that fails must not hide the others
            reason = last_line(f"{type(error).__name__}: {error}")
            print(f"{case.name}: {reason}", flush=True)
            context.record(case.name, dtype=case.dtype, verdict=f"FAILED: {reason}")
            passed = False
        if not passed:
            bad.append(case.name)
    context.summary(f"{len(cases) - len(bad)} of {len(cases)} cases within tolerance")
    if bad:
        context.problem(f"wrong or failed: {', '.join(bad)}")


def _compare(context: Context, case: Case, references: dict[str, Result]) -> bool:
    """Records the errors of a case and returns whether it passed."""
    cpu = jax.devices("cpu")[0]
    d_out = noise(np.shape(jax.eval_shape(case.function, case.floats, case.integers)), "d_out")
    plain = functools.partial(with_gradients, case.function)
    device = _run(case, case.with_gradients or plain, case.dtype, jax.devices()[: _devices(case)], case.mesh, d_out)
    key = case.reference or case.name
    if key not in references:
        references[key] = _run(dataclasses.replace(case, layout={}), plain, "float32", [cpu], {}, d_out)
    (out, grads), text = device
    (want_out, want_grads), _ = references[key]
    forward = error_of(out, want_out)
    gradient = max(error_of(grads[name], want_grads[name]) for name in want_grads)
    tolerance, tolerance_gradient = (case.slack * tolerance for tolerance in TOLERANCES[case.dtype])
    passed = forward <= tolerance and gradient <= tolerance_gradient  # NaN does not pass
    context.record(
        case.name,
        dtype=case.dtype,
        error=forward,
        tolerance=tolerance,
        gradient_error=gradient,
        gradient_tolerance=tolerance_gradient,
        path=path_of(text, jax.devices()[0].platform, case.kernel),
        verdict="ok" if passed else "WRONG",
    )
    return passed


def _devices(case: Case) -> int:
    return int(np.prod([*case.mesh.values(), 1]))


def _run(
    case: Case, function: WithGradients, dtype: str, devices: list[Any], axes: Mapping[str, int], d_out: np.ndarray
) -> Result:
    """Runs a case on these devices."""
    spec: Any = MeshSpec
    mesh = make_mesh(spec(**axes), devices)
    layout = Layout(mesh=mesh, **case.layout)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def call(floats: Floats, integers: Integers, d_out: jax.Array) -> tuple[jax.Array, Floats]:
        with active(layout):
            return function(floats, integers, d_out)

    floats = {name: jax.device_put(x.astype(jnp.dtype(dtype)), sharding) for name, x in case.floats.items()}
    integers = {name: jax.device_put(x, sharding) for name, x in case.integers.items()}
    args = (floats, integers, jax.device_put(d_out.astype(jnp.dtype(dtype)), sharding))
    with jax.default_device(devices[0]):
        compiled = jax.jit(call).lower(*args).compile()
        out, grads = compiled(*args)
    return (np.asarray(out, np.float32), {k: np.asarray(g, np.float32) for k, g in grads.items()}), str(
        compiled.as_text()
    )


def error_of(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns ‖found - expected‖ / ‖expected‖; NaN if a value is not finite."""
    difference = np.linalg.norm((found.astype(np.float64) - expected).ravel())
    return float(difference / max(np.linalg.norm(expected.astype(np.float64).ravel()), 1e-30))


def path_of(hlo: str, platform: str, kernel: bool) -> str:
    """Returns which kernels a program calls.

    Args:
        hlo: the optimized HLO.
        platform: cpu, gpu or tpu.
        kernel: whether the engine has an attention kernel for this case; without it in the program, attention has
            fallen back to plain XLA.
    """
    kernels = {
        "cuDNN attention": "__cudnn$fmha",
        "splash attention": "tpu_custom_call",
        "cuDNN convolution": "__cudnn$conv",
        "cuBLAS": "__cublas$",
        "Triton": "__triton",
        "ragged dot": "ragged-dot",
        "host memory": "S(5)",
    }
    found = [name for name, target in kernels.items() if target in hlo]
    attention = {"gpu": "cuDNN attention", "tpu": "splash attention"}.get(platform)
    if kernel and attention and attention not in found:
        found.insert(0, f"no {attention} (fallback to plain XLA)")
    return ", ".join(found) or "plain XLA"
