"""Checks a bundle: the hash of every file, and what each program computes from the samples.

    python check.py [BUNDLE]     a folder or a zip file; without it, the folder of this file

It needs numpy, and jax with flatbuffers for StableHLO, or onnxruntime for ONNX. The exit code is 0 only if at least one
program ran and all agree with the samples. `bundle.json` says what the bundle holds.
"""

import hashlib
import importlib
import json
import struct
import sys
import zipfile
import zlib
from pathlib import Path

try:
    import numpy as np
except ImportError:
    sys.exit("check.py: numpy is not installed. Install numpy, and jax with flatbuffers, or onnxruntime.")

FORMAT = 1  # newest format of bundles that this file reads
MANIFEST = "bundle.json"
UNLISTED = (MANIFEST, f"{MANIFEST}.minisig")  # files whose hashes are not in bundle.json: itself and its signature
TYPES = {"BOOL": "bool", "I": "int", "U": "uint", "F": "float", "BF": "bfloat"}  # of safetensors, before the bits


class BundleError(Exception):
    """A bundle cannot be read, was changed, or computes something else than its samples."""


class Absent(Exception):
    """A program cannot run here, because a library or a device is missing."""


class Bundle:
    """The files of a folder or of a zip file. `manifest` is the content of bundle.json."""

    def __init__(self, path):
        self.path, self._zip, self._prefix = Path(path), None, ""
        try:
            if not self.path.is_dir():
                self._zip = zipfile.ZipFile(self.path)
                # A zip file holds the folder of a bundle, or what is in it.
                found = [name for name in self._zip.namelist() if name.split("/")[-1] == MANIFEST]
                self._prefix = min(found, key=len, default="")[: -len(MANIFEST)]
            self.manifest = json.loads(self.read(MANIFEST))
            version = int(self.manifest["format"])
        except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
            raise BundleError(f"{path}: is no bundle ({type(error).__name__}: {error}).") from error
        if version > FORMAT:
            raise BundleError(f"{path}: has format {version}; this program reads formats up to {FORMAT}.")

    def names(self):
        """Returns the names of all files, except those that Python writes."""
        if self._zip:
            found = [n[len(self._prefix) :] for n in self._zip.namelist() if n.startswith(self._prefix)]
        else:
            found = [p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if not p.is_dir()]
        return {name for name in found if name and name[-1] != "/" and "__pycache__" not in name.split("/")}

    def read(self, name):
        """Returns the bytes of a file."""
        try:
            return self._zip.read(self._prefix + name) if self._zip else (self.path / name).read_bytes()
        except (OSError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{self.path}: {name} cannot be read ({error}). Copy the bundle again.") from error

    def verify(self):
        """Returns the number of files; raises BundleError for one that is missing, changed, or not in bundle.json."""
        found, files = self.names(), self.manifest["files"]
        for name in sorted(set(files) ^ (found - set(UNLISTED))):
            problem = "is missing" if name in files else f"is not listed in {MANIFEST}"
            raise BundleError(f"{self.path}: {name} {problem}. Copy the bundle again.")
        for name, expected in files.items():
            data = self.read(name)
            if len(data) != expected["bytes"]:
                raise BundleError(f"{self.path}: {name} has {len(data)} bytes instead of {expected['bytes']}.")
            if hashlib.sha256(data).hexdigest() != expected["sha256"]:
                raise BundleError(f"{self.path}: {name} was changed: its sha256 is not that in {MANIFEST}.")
        return len(files)

    def arrays(self, name):
        """Returns the arrays of a safetensors file by name: the length of a header, the header, and the values."""
        data, found = self.read(name), {}
        start = 8 + struct.unpack_from("<Q", data)[0]
        for key, spec in json.loads(data[8:start]).items():
            if key != "__metadata__":
                kind = spec["dtype"].rstrip("0123456789")
                if kind == "BF":
                    import ml_dtypes  # noqa: F401, comes with jax: bfloat16 of numpy
                dtype = np.dtype(TYPES[kind] + spec["dtype"][len(kind) :])
                first, end = spec["data_offsets"]
                found[key] = np.frombuffer(data[start + first : start + end], dtype).reshape(spec["shape"])
        return found


def installed(*names):
    """Returns modules; raises Absent for one that is missing."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise Absent(f"{error.name} is not installed") from error


def load_stablehlo(bundle, program):
    """Returns the program as a function from inputs to outputs by name, and what runs it."""
    call, weights, library = compile_stablehlo(bundle, program)
    [jax] = installed("jax")
    return lambda inputs: jax.device_get(call(*weights, inputs)), library


def compile_stablehlo(bundle, program):
    """Returns the jitted function, its arguments before the inputs (weights that are a file), and what runs it."""
    _, jax, export = installed("flatbuffers", "jax", "jax.export")  # jax reads programs with flatbuffers
    names = {"cpu": ("cpu",), "gpu": ("cuda", "rocm"), "tpu": ("tpu",)}
    backends = dict.fromkeys((jax.default_backend(), "cpu"))
    backend = next((b for b in backends if set(names.get(b, ())) & set(program["platforms"])), None)
    if backend is None:
        raise Absent(f"it runs on {', '.join(program['platforms'])}, and jax finds {', '.join(backends)} here")
    if backend != jax.default_backend():
        jax.config.update("jax_default_device", jax.devices(backend)[0])
    exported = export.deserialize(bytearray(bundle.read(program["file"])))
    weights = []
    if program["weights"] is not None:
        (names, _), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        stored = bundle.arrays(program["weights"])
        weights.append(jax.device_put({name: stored[name] for name in names}))
    return jax.jit(exported.call), weights, f"jax {jax.__version__}, {backend}"


def load_onnx(bundle, program, options=None):
    """Returns the same of an ONNX program. `options`: of the session."""
    [onnxruntime] = installed("onnxruntime")
    content, library = bundle.read(program["file"]), f"onnxruntime {onnxruntime.__version__}, cpu"
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    # In ONNX an output must not have the name of an input, as the next state does in bundle.json.
    state = {f"next/{x.name}": x.name for x in session.get_inputs()}
    names = [state.get(x.name, x.name) for x in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(None, inputs))), library  # noqa: B905, Python 3.9


LOADERS = {"stablehlo": load_stablehlo, "onnx": load_onnx}


def cases(call, entry, samples):
    """Yields (text, outputs, expected outputs): of all rows, and of one row if the program takes any number of rows."""
    inputs, expected = ({n: samples[f"{part}/{n}"] for n in entry[part]} for part in ("inputs", "outputs"))
    if entry["state"]:
        yield "all frames", frames(call, entry["state"], inputs), expected
        return
    yield "all rows", call(inputs), expected
    rows = rows_of(entry)
    if isinstance(rows, str):
        outputs = call({n: first_row(x, entry["inputs"][n]["shape"], rows) for n, x in inputs.items()})
        results = [n for n, spec in entry["outputs"].items() if spec["shape"][:1] == [rows]]
        one = {n: first_row(expected[n], entry["outputs"][n]["shape"], rows) for n in results}
        yield "one row", {n: outputs[n] for n in results}, one


def first_row(x, shape, rows):
    """Returns the part of an array that belongs to the first row. `shape` is that in bundle.json."""
    return x[tuple(slice(1 if size == rows else None) for size in shape)]


def rows_of(entry):
    """Returns the number of rows of a call, which is the first dimension of each input; a name for any number."""
    return next((spec["shape"][0] for spec in entry["inputs"].values() if spec["shape"]), 1)


def frames(call, state, inputs):
    """Returns the outputs of all frames, `[frames, ...]`. Each call gets the state that the call before it returned."""
    values, found = {name: inputs[name] for name in state}, []
    for frame in range(len(next(x for name, x in inputs.items() if name not in state))):
        found.append(call({name: values[name] if name in state else x[frame] for name, x in inputs.items()}))
        values = {name: found[-1][name] for name in state}
    return {name: np.stack([outputs[name] for outputs in found]) for name in found[0]}


def difference(found, expected):
    """Returns the largest difference relative to max(1, largest expected value); infinite for unequal integers."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise TypeError(f"{found.dtype}{list(found.shape)} instead of {expected.dtype}{list(expected.shape)}")
    if found.dtype.kind in "biu" or not found.size:
        return 0.0 if (found == expected).all() else np.inf
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        largest = np.where(same, 0.0, np.abs(found - expected)).max()
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=1.0)
    return float(largest / scale) if np.isfinite(largest) else np.inf


def check(bundle, name, kind):
    """Runs a program of an entry point; returns a line about it, and whether it agrees: None if it cannot run here."""
    entry = bundle.manifest["entries"][name]
    program, texts, worst = entry["programs"][kind], [], 0.0
    tolerance = program.get("tolerance", entry["tolerance"])  # of all outputs, or of each by name
    try:
        call, library = LOADERS[kind](bundle, program)
        for text, outputs, expected in cases(call, entry, bundle.arrays(entry["samples"])):
            texts.append(text)
            for output, values in expected.items():
                found = difference(outputs[output], values)
                allowed = tolerance[output] if isinstance(tolerance, dict) else tolerance
                if found > allowed:
                    return f"{name} {kind} ({library}): {output} of {text} differs by {found:.2g} > {allowed:g}", False
                worst = max(worst, found)
    except Absent as error:
        return f"{name} {kind}: not run: {error}", None
    except Exception as error:  # each library has its own
        return f"{name} {kind}: fails: {type(error).__name__}: {str(error).partition(chr(10))[0]}", False
    return f"{name} {kind} ({library}): {' and '.join(texts)} agree, largest difference {worst:.2g}", True


def main(arguments):
    """Checks a bundle, prints a line for each program, and returns the exit code."""
    try:
        bundle = Bundle(arguments[0] if arguments else Path(__file__).resolve().parent)
        print(f"{bundle.verify()} files have the hashes of {MANIFEST}")
        programs = [(name, kind) for name, entry in bundle.manifest["entries"].items() for kind in entry["programs"]]
        results = []
        for name, kind in programs:
            line, agrees = check(bundle, name, kind)
            print(line, flush=True)
            results.append(agrees)
    except BundleError as error:
        problem = str(error)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"{MANIFEST}: was changed or is damaged ({type(error).__name__}: {error})."
    else:
        if True in results and False not in results:
            return 0
        problem = f"{results.count(False)} of {len(results)} programs do not agree with the samples."
        if False not in results:
            problem = "no program ran. Install jax with flatbuffers, or onnxruntime."
    print(f"check.py: {problem}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
