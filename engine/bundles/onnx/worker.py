"""Converts the methods of a request to ONNX and runs them: `python -m engine.bundles.onnx.worker REQUEST`.

It runs in the environment of jax2onnx, without Orbax, and must import nothing that needs other packages than those of
`requirements.in`.
"""

import importlib
import importlib.metadata
import json
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import JaxprEqn

from engine.base.errors import ConfigError, ConvoyError, EngineEnd, TaskError, first_line
from engine.base.user_errors import location, traced_place
from engine.bundles.forward import forward_of
from engine.bundles.onnx import request, rules
from engine.bundles.onnx.plain import Plain
from engine.bundles.onnx.request import Method
from engine.bundles.parity import run_frames
from engine.compile.build import build_evaluation_program, build_task
from engine.config.schema import MeshSpec
from engine.config.text import from_text
from engine.parallel.mesh import make_mesh
from engine.quantization.plan import Plan
from engine.quantization.qdq import insert_qdq
from engine.training.task import Task

OPSET = 22
IR_VERSION = 10
"""The newest versions that onnxruntime 1.20 reads, of November 2024."""
LARGEST = 2**31 - 1
"""Bytes of a file of protocol buffers."""
_PACKAGES = ("jax2onnx", "onnx", "onnxruntime", "jax")
_ADVICE = {
    "call_exported": "Call the function itself, not a program of jax.export",
    "custom_call": "Use the plain formula if engine.layers has no such layer",
    "eigh": "Compute it in closed form, or after the program",
    "fft": "Multiply by the matrix of the transform",
    "lu": "Use a closed form for small matrices, or solve after the program",
    "pallas_call": "Write the plain formula, and use the kernel only during training",
    "pure_callback": "Compute it with jax.numpy, or after the program",
    "io_callback": "Leave the side effect out of the method",
    "debug_callback": "Leave jax.debug.print out of the method",
    "shard_map": "Write the plain formula, and let the engine divide it over devices",
    "random_bits": "Leave random numbers out of an evaluation, or make them an input",
    "svd": "Compute it in closed form, or after the program",
}
"""Primitive -> what to do instead."""


def main(folder: Path) -> None:
    """Converts a request and writes the answer, which may be an error."""
    try:
        answer = _convert_all(folder)
    except EngineEnd as error:
        answer = {"error": f"{error}", "kind": "TaskError" if isinstance(error, TaskError) else "ConfigError"}
    (folder / request.ANSWER).write_text(json.dumps(answer), encoding="utf-8")


def _convert_all(folder: Path) -> dict[str, Any]:
    _check_packages()
    text, weights, methods = request.read(folder)
    task, model = _model(text, weights)
    rules.register()
    for i, method in enumerate(methods):
        content = to_onnx(task, model, method)
        (request.place(folder, i) / request.MODEL).write_bytes(content)
        call = _session(content, f"{type(task).__name__}.{method.name}")
        for k, case in enumerate(method.cases):
            request.save(request.place(folder, i) / f"outputs_{k}.safetensors", run_frames(call, *case))
    return {"opset": OPSET, "versions": {name: importlib.metadata.version(name) for name in _PACKAGES}}


def _package(name: str) -> Any:
    """Returns a package that this environment has, and that of the engine has not."""
    return importlib.import_module(name)


def _check_packages() -> None:
    for name in _PACKAGES:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            lock = Path(__file__).with_name("requirements.lock")
            raise ConfigError(
                f"{sys.executable}: {name} is not installed there. Run {sys.executable} -m pip install --no-deps -r "
                f"{lock}"
            ) from error


def _model(text: str, weights: request.Arrays) -> tuple[Task, nnx.Module]:
    """Returns the Task of a config, and its model with these values, in evaluation mode."""
    config = from_text(text, "the config of the run")
    try:
        task = build_task(config.task)
    except ConvoyError as error:
        raise ConfigError(f"{error} This concerns the environment of {sys.executable}.") from error
    mesh = make_mesh(MeshSpec(), jax.local_devices()[:1])
    found = build_evaluation_program(task, mesh, config.train, config.sharding, config.optimizer.trainable).model
    params, state = ({name: jnp.asarray(weights[name]) for name in part} for part in (found.params, found.model_state))
    model = found.module(params, state, None)
    model.eval()
    return task, model


def to_onnx(task: Task, model: nnx.Module, method: Method) -> bytes:
    """Returns a method as an ONNX model. Raises TaskError if it cannot be converted."""
    where = f"{type(task).__name__}.{method.name}"
    forward = forward_of(task, model, jnp.float32, method.example, method.name, method.rows)
    names, specs = list(method.inputs), list(method.inputs.values())
    method_function, arrays = forward.function, forward.weights
    plan = None if method.plan is None else Plan.from_json(method.plan)
    if plan is not None:
        method_function, arrays = plan.function(forward.function, forward.weights, form="qdq"), method.arrays
    weights = {name: jnp.asarray(x) for name, x in arrays.items()}
    outputs: list[str] = []

    def function(*args: jax.Array) -> list[jax.Array]:
        found = method_function(weights, dict(zip(names, args, strict=True)))
        outputs[:] = sorted(found)
        return [found[name] for name in outputs]

    try:
        plain = Plain(function, *specs)
    except Exception as error:  # JAX has many, and the user's code more
        place = f" ({found})" if (found := location(error)) else ""
        raise TaskError(
            f"{where}: cannot be traced for ONNX{place}: {type(error).__name__}: {first_line(error)}."
        ) from error
    try:
        proto = _package("jax2onnx").to_onnx(
            lambda *args: plain(*args),
            specs,
            model_name=method.name,
            opset=OPSET,
            input_names=names,
            output_names=[output_name(name, names) for name in outputs],
        )
    except Exception as error:  # jax2onnx has no errors of its own
        raise TaskError(f"{where}: {_unsupported(error, plain)}") from error
    if plan is not None and plan.scheme.is_integer and plan.scheme.inputs:
        insert_qdq(proto, plan.bits)
    _finish(proto, plain.outputs)
    if (size := proto.ByteSize()) > LARGEST:
        raise TaskError(f"{where}: the ONNX model has {size:,} bytes. Allowed are {LARGEST:,}: use --format=stablehlo.")
    return proto.SerializeToString(deterministic=True)


def output_name(name: str, inputs: Collection[str]) -> str:
    """Returns the name of an output in the ONNX model, where it must not be that of an input, such as the state."""
    return f"{request.NEXT}{name}" if name in inputs else name


def _finish(proto: Any, outputs: Sequence[jax.ShapeDtypeStruct]) -> None:
    """Names the symbolic sizes of the outputs, and leaves out what depends on the converter's environment."""
    proto.ir_version, proto.producer_name, proto.doc_string = IR_VERSION, "convoy", ""
    proto.ClearField("metadata_props")
    proto.graph.ClearField("value_info")  # runtimes infer the shapes
    for value, output in zip(proto.graph.output, outputs, strict=True):
        shape = value.type.tensor_type.shape
        shape.ClearField("dim")
        for size in request.shape_of(output):
            dimension = shape.dim.add()
            if isinstance(size, int):
                dimension.dim_value = size
            else:
                dimension.dim_param = size
    for node in _nodes(proto.graph):
        node.doc_string = ""
        node.ClearField("metadata_props")


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _nodes(inner)


def _unsupported(error: Exception, plain: Plain) -> str:
    """Returns which operation of the method jax2onnx cannot convert, and what to do."""
    failed = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if hasattr(frame.f_locals.get("eqn"), "primitive"):
            failed = frame.f_locals["eqn"]
    if failed is None:
        return f"jax2onnx failed: {type(error).__name__}: {first_line(error)}. Use --format=stablehlo."
    name = failed.primitive.name
    place = next(filter(None, (traced_place(_frames(x)) for x in plain.equations() if _is_like(x, failed))), "")
    advice = _ADVICE.get(name, "Compute the same with other operations, or after the program")
    where = f" ({place})" if place else ""
    return (
        f"the operation {name!r}{where} has no form in ONNX: {type(error).__name__}: {first_line(error)}. {advice}; "
        "--format=stablehlo has every operation."
    )


def _is_like(equation: JaxprEqn, failed: Any) -> bool:
    return equation.primitive.name == failed.primitive.name


def _frames(equation: JaxprEqn) -> Any:
    found = equation.source_info.traceback
    return [] if found is None else found.frames


def _session(content: bytes, where: str) -> Callable[[request.Arrays], dict[str, np.ndarray]]:
    """Returns an ONNX model as a function `inputs -> outputs` of onnxruntime. Raises TaskError if it refuses it."""
    onnxruntime = _package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is raised
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for each status
        raise TaskError(f"{where}: onnxruntime refuses the ONNX model: {first_line(error)}.") from error
    names = [output.name for output in session.get_outputs()]
    keys = [name.removeprefix(request.NEXT) for name in names]

    def call(inputs: request.Arrays) -> dict[str, np.ndarray]:
        try:
            found = session.run(names, dict(inputs))
        except Exception as error:
            raise TaskError(f"{where}: onnxruntime cannot run the ONNX model: {first_line(error)}.") from error
        return dict(zip(keys, found, strict=True))

    return call


if __name__ == "__main__":
    main(Path(sys.argv[1]))
