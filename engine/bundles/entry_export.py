"""Exports one entry point of a trained Task: its programs, checked against the engine, and its samples."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from engine.api.saved_run import LoadedRun
from engine.base.errors import TaskError
from engine.bundles.bundle import INPUTS, OUTPUTS, save_arrays
from engine.bundles.exported import Entry
from engine.bundles.forward import Specs, forward_of
from engine.bundles.manifest import Array, EntryPoint
from engine.bundles.onnx.convert import OnnxProgram
from engine.bundles.onnx.request import Method
from engine.bundles.options import ONNX, STABLEHLO, Options
from engine.bundles.parity import checked, differences, run_frames, variants
from engine.bundles.program import compiled, export_program, input_specs
from engine.bundles.quantized import TOLERANCE as QUANTIZED_TOLERANCE
from engine.bundles.quantized import QuantizedForward, quantized_forward
from engine.bundles.samples import SampleData, engine_function, entry_batches, example_of, first_state, with_rows
from engine.metrics.values import pad_rows
from engine.quantization.plan import Plan
from engine.quantization.runs import Settings

WEIGHTS = "weights.safetensors"
TOLERANCE = {"float32": 1e-5, "float64": 1e-5, "bfloat16": 2e-2, "float16": 4e-3}
"""Largest accepted difference of an output, relative to max(1, |largest value|), by the precision of the model."""

type Arrays = Mapping[str, Any]
type Call = Callable[[Arrays], Mapping[str, np.ndarray]]
type Say = Callable[[str], None]


@dataclass(frozen=True)
class ExportedEntry:
    """An entry point and its files.

    Attributes:
        entry: its description in the manifest.
        files: name -> content.
        weights: name -> array, for the file of weights that the entry points share.
    """

    entry: EntryPoint
    files: Mapping[str, bytes]
    weights: Mapping[str, np.ndarray]


class EntryExporter:
    """Exports an entry point.

    Args:
        found: the trained model.
        data: the dataset of the samples.
        entry: the entry point.
        options: what the bundle holds.
        say: called with sentences for the user.
        like: plan by which another entry point is quantized; None: it is chosen by measuring.

    Raises:
        TaskError: the method cannot be traced.
        ConfigError: the options do not fit to its inputs.
    """

    def __init__(
        self,
        found: LoadedRun,
        data: SampleData,
        entry: Entry,
        options: Options,
        say: Say,
        like: Plan | None = None,
    ):
        self.name, self.where = entry.name, f"{type(found.task).__name__}.{entry.name}"
        self._options, self._say = options, say
        self.example = example_of(entry, data)
        self.dtype = np.dtype(data.program.compute_dtype)
        self._rows = found.config.train.global_batch_size
        self.forward = forward_of(data.task, found.model, self.dtype, self.example, entry.name, self._rows)
        if unknown := [name for name in entry.shapes if name not in self.forward.inputs]:
            raise TaskError(
                f"{self.where}: shapes= names {unknown[0]}, which the method does not read. Inputs: "
                f"{', '.join(self.forward.inputs)}."
            )
        shapes = {**entry.shapes, **{name: x for name, x in options.shapes.items() if name in self.forward.inputs}}
        self.inputs = input_specs(self.forward, options.rows, shapes)
        rows = next((n for x in self.inputs.values() for n in x.shape[:1] if isinstance(n, int)), None)
        self._batches = entry_batches(entry, data, bool(self.forward.state), rows)
        self._frames = [_fitted(batch, self.inputs) for batch in self._batches]
        state = first_state(data, self.forward.state)
        self._state = state if rows is None else with_rows(state, rows)
        self._engine = engine_function(found, data, entry, self.example)
        self.quantized: QuantizedForward | None = None
        self.tolerance = TOLERANCE[self.dtype.name]
        """Largest accepted difference."""
        if options.quantize is not None:
            self._quantize(found, entry, options.quantize, like)
        self.cases = list(variants(self.inputs, self._frames, self._state))
        """Inputs of the samples and of other sizes, each with the state before them."""

    @functools.cached_property
    def expected(self) -> list[dict[str, np.ndarray]]:
        """What the engine computes from each case."""

        def call(given: Arrays) -> Mapping[str, np.ndarray]:
            rows = next(iter(given.values())).shape[0]
            return self._engine({**{name: x[:rows] for name, x in self._batches[0].items()}, **given})

        return [run_frames(call, *case) for case in self.cases]

    def _quantize(self, found: LoadedRun, entry: Entry, settings: Settings, like: Plan | None) -> None:
        """Replaces the function by one in fewer bits, which the programs are compared with from now on."""
        examples = None if entry.inputs is None else self._frames
        self.quantized = quantized_forward(found, self.forward, examples, settings, self._say, like)
        self.forward, self.tolerance = self.quantized.forward, QUANTIZED_TOLERANCE[settings.scheme]
        call = self.quantized.call
        self._engine = lambda given: call({name: x for name, x in given.items() if name in self.inputs})
        if self.quantized.text:
            self._say(f"{self.where} in {settings.scheme}:\n{self.quantized.text}")

    def parity(self, outputs: Sequence[Arrays], kind: str) -> dict[str, float]:
        """Returns the largest difference of each output of a program. Raises BundleError above the tolerance.

        Args:
            outputs: what the program computes from each case.
            kind: name of the kind of program.
        """
        found = [differences(have, want) for have, want in zip(outputs, self.expected, strict=True)]
        largest = {name: max(one[name] for one in found) for name in found[0]}
        self._say(checked(self.where, kind, largest, self.tolerance))
        return largest

    def method(self) -> Method:
        """Returns what the converter to ONNX needs."""
        plan = None if self.quantized is None else self.quantized.plan.to_json()
        arrays = {} if self.quantized is None else self.forward.weights
        return Method(self.name, self.example, self.inputs, self._rows, self.cases, plan, arrays)

    def export(self, onnx: OnnxProgram | None) -> ExportedEntry:
        """Returns the entry point with its files. Raises TaskError or BundleError.

        Args:
            onnx: its ONNX model, if the bundle holds one.
        """
        programs, files = {}, {}
        if STABLEHLO in self._options.formats:
            programs[STABLEHLO] = self._stablehlo(files)
        if onnx is not None:
            programs[ONNX] = self._onnx(onnx, files)
        samples = f"samples/{self.name}.safetensors"
        inputs = self._frames[0] if not self._state else _stacked(self._frames)
        files[samples] = save_arrays(
            {f"{INPUTS}{name}": x for name, x in {**inputs, **self._state}.items()}
            | {f"{OUTPUTS}{name}": x for name, x in self.expected[0].items()}
        )
        weights = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in self.forward.weights.items()}
        outputs = jax.eval_shape(self.forward.function, weights, self.inputs)
        entry = EntryPoint(
            self.name, _arrays(self.inputs), _arrays(outputs), programs, samples, self.tolerance, self.forward.state
        )
        has_file = STABLEHLO in self._options.formats and not self._options.holds_weights
        if has_file and self.quantized is not None:
            files[self._weights_file] = save_arrays(self.forward.weights)
        return ExportedEntry(entry, files, self.forward.weights if has_file and self.quantized is None else {})

    @property
    def _weights_file(self) -> str:
        """The file of weights: one for all entry points, unless each has scales of its own."""
        return WEIGHTS if self.quantized is None else f"{self.name}.{WEIGHTS}"

    def _stablehlo(self, files: dict[str, bytes]) -> dict[str, Any]:
        """Adds the program to the files, and returns its properties."""
        inside, file = self._options.holds_weights, f"{self.name}.{STABLEHLO}"
        program = export_program(self.forward, self.inputs, self.where, self._options.platforms, inside)
        files[file] = program.stablehlo
        call = compiled(program.stablehlo, None if inside else self.forward.weights)
        return {
            "file": file,
            "weights": None if inside else self._weights_file,
            "platforms": list(self._options.platforms),
            "version": program.version,
            "parity": self.parity([run_frames(call, *case) for case in self.cases], "StableHLO"),
        }

    def _onnx(self, program: OnnxProgram, files: dict[str, bytes]) -> dict[str, Any]:
        """Adds the model to the files, and returns its properties."""
        file = f"{self.name}.{ONNX}"
        files[file] = program.model
        return {
            "file": file,
            "opset": program.opset,
            "converter": dict(program.versions),
            "parity": self.parity(program.outputs, "ONNX"),
        }


def _fitted(batch: Arrays, inputs: Specs) -> dict[str, np.ndarray]:
    """Returns the inputs of a program from a batch, cut or padded to the fixed sizes of their dimensions."""
    found = {}
    for name, x in batch.items():
        if name in inputs:
            sizes = [size if isinstance(size, int) else n for n, size in zip(x.shape, inputs[name].shape, strict=True)]
            found[name] = pad_rows(x[tuple(map(slice, sizes))], sizes[1:])
    return found


def _stacked(frames: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}


def _arrays(specs: Specs) -> dict[str, Array]:
    def size(n: Any) -> int | str:
        return n if isinstance(n, int) else str(n)

    return {name: Array(tuple(map(size, x.shape)), np.dtype(x.dtype).name) for name, x in specs.items()}
