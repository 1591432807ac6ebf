"""Converts methods of a trained Task to ONNX, in another environment, where onnxruntime also runs the result.

jax2onnx requires an older Orbax than Convoy. Its environment has the packages of `requirements.lock`, which are those
that models need, without Orbax; Convoy and the code of the run are found on PYTHONPATH.
"""

import importlib.util
import json
import os
import shlex
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from engine.api.saved_run import LoadedRun
from engine.base.errors import ConfigError, TaskError
from engine.bundles.forward import name_of
from engine.bundles.onnx import PYTHON_VARIABLE, request
from engine.bundles.onnx.request import Method
from engine.config.instances import INSTANCE
from engine.config.schema import Target
from engine.config.text import to_text

LOCK = Path(__file__).parent / "requirements.lock"
PRECISION = "float32"
"""The only precision: onnxruntime has no kernels for bfloat16 on CPUs."""


@dataclass(frozen=True)
class OnnxProgram:
    """An ONNX model.

    Attributes:
        model: the content of the file. Inputs and outputs have their names, and symbolic sizes theirs. An output that
            has the name of an input, such as the state, has `request.NEXT` before it.
        opset: version of the operations.
        outputs: what onnxruntime computes for each case: name -> array, `[frames, ...]` of a model with memory.
        versions: package -> version, of the converter.
    """

    model: bytes
    opset: int
    outputs: Sequence[Mapping[str, np.ndarray]]
    versions: Mapping[str, str]


def convert(found: LoadedRun, methods: Sequence[Method], python: str | None = None) -> list[OnnxProgram]:
    """Converts methods of the Task of a run to ONNX and runs the results.

    Args:
        found: the trained model.
        methods: the methods, with inputs to run the results.
        python: interpreter of the environment with jax2onnx; None: CONVOY_ONNX_PYTHON, or this environment.

    Raises:
        ConfigError: there is no such environment, or the Task cannot be built there.
        TaskError: a method cannot be converted; the text names the line and what to use instead.
    """
    python = find_python(python)
    if found.config.task.target == INSTANCE:
        raise ConfigError(
            "--format=onnx: the run was started with a Task object, which cannot be built in the environment of "
            "jax2onnx. Train it from a config that names the Task."
        )
    state = nnx.to_flat_state(nnx.state(found.model, nnx.Not(nnx.RngState)))
    weights = {name_of(path): np.asarray(variable.get_value()) for path, variable in state}
    with tempfile.TemporaryDirectory() as folder:
        asked, links = Path(folder) / "request", Path(folder) / "links"
        asked.mkdir()
        links.mkdir()
        request.write(asked, to_text(found.config), weights, methods)
        answer = _run(python, asked, _search_path(python, found.config.task, links))
        return [
            OnnxProgram(
                (request.place(asked, i) / request.MODEL).read_bytes(),
                answer["opset"],
                [request.load(request.place(asked, i) / f"outputs_{k}.safetensors") for k in range(len(method.cases))],
                answer["versions"],
            )
            for i, method in enumerate(methods)
        ]


def find_python(given: str | None = None) -> str:
    """Returns the interpreter of the environment with jax2onnx.

    Args:
        given: value of `--onnx-python`.

    Raises:
        ConfigError: there is none; the text says how to make one.
    """
    chosen, flag = given or os.environ.get(PYTHON_VARIABLE), "--onnx-python" if given else PYTHON_VARIABLE
    if chosen:
        if not os.access(chosen, os.X_OK) or Path(chosen).is_dir():
            raise ConfigError(f"{flag}={chosen}: is no interpreter of Python. {_advice()}")
        return chosen
    if importlib.util.find_spec("jax2onnx") is not None:
        return sys.executable
    raise ConfigError(f"--format=onnx: jax2onnx converts to ONNX in an environment of its own. {_advice()}")


def _advice() -> str:
    return (
        f"Make one with python3 -m venv onnx-env, and onnx-env/bin/pip install --no-deps -r {shlex.quote(str(LOCK))}; "
        "then add --onnx-python=onnx-env/bin/python."
    )


def _run(python: str, asked: Path, path: Sequence[str]) -> dict[str, Any]:
    """Runs the converter and returns its answer. Raises ConfigError or TaskError."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "JAX_PLATFORMS": "cpu"}
    command = [python, "-P", "-m", "engine.bundles.onnx.worker", str(asked)]
    try:
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"{python}: cannot be started ({error.strerror or error}). {_advice()}") from error
    answer = asked / request.ANSWER
    if not answer.exists():
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        raise ConfigError(f"{python}: the converter to ONNX failed: {lines[-1]}. {_advice()}")
    found = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in found:
        raise (TaskError if found["kind"] == "TaskError" else ConfigError)(found["error"])
    return found


def _search_path(python: str, task: Target, links: Path) -> list[str]:
    """Returns where the converter finds Convoy and the code of the run, without the other packages of this environment.

    Args:
        python: its interpreter; that of this environment sees everything.
        task: config section of the Task.
        links: an empty folder, for links to installed packages.
    """
    current = [str(Path(folder).absolute()) for folder in sys.path if not folder or Path(folder).is_dir()]
    if python == sys.executable:
        return current
    installed = _installed()
    for name in sorted({"engine", *(target.partition(".")[0] for target in _targets(task))}):
        spec = importlib.util.find_spec(name)
        for origin in spec.submodule_search_locations or [spec.origin] if spec else []:
            if origin and any(Path(origin).is_relative_to(folder) for folder in installed):
                (links / Path(origin).name).symlink_to(origin)
    own = [folder for folder in current if not any(Path(folder).is_relative_to(other) for other in installed)]
    return [str(links), *own]


def _installed() -> list[Path]:
    """Returns the folders of the standard library and of installed packages."""
    known = [*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()]
    found = {Path(folder) for folder in known if Path(folder).name not in ("bin", "include")}
    found |= {Path(zipped) for zipped in sys.path if zipped.endswith(".zip")}
    return sorted(found - {Path(sys.prefix), Path(sys.base_prefix)})


def _targets(value: Any) -> Iterator[str]:
    """Yields the dotted paths in a config section, or in an argument of one."""
    if isinstance(value, Target):
        yield value.target
        yield from _targets(value.arguments)
    elif isinstance(value, Mapping):
        if isinstance(value.get("target"), str):
            yield value["target"]
        for part in value.values():
            yield from _targets(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _targets(part)
