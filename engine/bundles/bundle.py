"""Reads and writes bundles: folders, or zip files with the same content."""

import functools
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.base.errors import ConfigError, did_you_mean, first_line
from engine.base.files import remove, temporary_path
from engine.bundles.manifest import (
    MANIFEST,
    SIGNATURE,
    Array,
    BundleError,
    EntryPoint,
    entry_of,
    file_record,
    parse,
    to_text,
)

ZIP = ".zip"
INPUTS, OUTPUTS = "inputs/", "outputs/"
"""Before the names of the arrays in a file of samples."""
_TIME = (1980, 1, 1, 0, 0, 0)  # of every file in a zip file, so that its bytes do not depend on the time

type Arrays = Mapping[str, Any]


class Bundle:
    """A bundle on disk. A file is checked against its hash when it is read.

    Args:
        path: the folder or the zip file.

    Raises:
        BundleError: it is no bundle, its manifest is damaged, or of a later version.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = parse(self._content(MANIFEST), str(path))
        self.entries = {name: entry_of(name, found) for name, found in self.manifest["entries"].items()}
        """Name -> entry point."""
        self._files: Mapping[str, Mapping[str, Any]] = self.manifest["files"]

    def read(self, name: str) -> bytes:
        """Returns the content of a file. Raises BundleError if it is missing, or was changed."""
        if name not in self._files:
            raise BundleError(f"{self.path}: {name} is not listed in {MANIFEST}. Export the bundle again.")
        content = self._content(name)
        if (found := file_record(content)) != self._files[name]:
            raise BundleError(
                f"{self.path}: {name} was changed or cut: {found['bytes']:,} bytes instead of "
                f"{self._files[name]['bytes']:,}, with another hash. Copy or export the bundle again."
            )
        return content

    def check_files(self) -> None:
        """Raises BundleError if a file is missing, was changed, or is in no list."""
        for name in self._files:
            self.read(name)
        if extra := sorted(set(self._names()) - set(self._files) - {MANIFEST, SIGNATURE}):
            raise BundleError(f"{self.path}: {extra[0]} does not belong to the bundle. Remove it.")

    def entry(self, name: str) -> EntryPoint:
        """Returns an entry point. Raises BundleError if there is none of this name."""
        if name not in self.entries:
            raise BundleError(
                f"{self.path}: no entry point {name!r}.{did_you_mean(name, self.entries)} Found: "
                f"{', '.join(self.entries)}."
            )
        return self.entries[name]

    def samples(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Returns inputs and outputs by name, which the engine has computed."""
        found = load_arrays(self.read(self.entry(name).samples))
        inputs, outputs = (
            {key.removeprefix(prefix): x for key, x in found.items() if key.startswith(prefix)}
            for prefix in (INPUTS, OUTPUTS)
        )
        return inputs, outputs

    def function(self, name: str = "predict") -> Callable[[Arrays], dict[str, np.ndarray]]:
        """Returns an entry point as a function `inputs -> outputs`, compiled for the first device.

        Its inputs must have the names, shapes and dtypes of the manifest; a BundleError says which has not.
        """
        import jax
        from jax import export

        from engine.bundles.program import compiled

        entry = self.entry(name)
        if (program := entry.programs.get("stablehlo")) is None:
            raise BundleError(
                f"{self.path}: {name} has no StableHLO program, only {', '.join(entry.programs)}. Export the run with "
                "--format=stablehlo."
            )
        where = f"{self.path}: {name}"
        platform = export.default_export_platform()
        if platform not in (there := program.get("platforms", [platform])):
            raise BundleError(
                f"{where} runs on {', '.join(there)}, but JAX uses {platform} here. Export the run with "
                f"--platforms={platform}, or set JAX_PLATFORMS."
            )
        weights = load_arrays(self.read(file)) if (file := program.get("weights")) else None
        content = self.read(program["file"])
        try:
            call = compiled(content, weights)
        except Exception as error:  # JAX has no class of its own for a program of another version
            raise BundleError(
                f"{where}: this JAX, {jax.__version__}, cannot read the program, which JAX {self._version('jax')} has "
                f"written ({first_line(error)}). Install that version, or export the run again."
            ) from error

        def checked(inputs: Arrays) -> dict[str, np.ndarray]:
            arrays = checked_inputs(entry, inputs, where)
            try:
                return call(arrays)
            except (TypeError, ValueError) as error:  # not those of a device
                raise BundleError(
                    f"{where}: the program does not fit to {MANIFEST} ({first_line(error)}). Copy or export the bundle "
                    "again."
                ) from error

        return checked

    def _version(self, package: str) -> str:
        versions = self.manifest.get("versions")
        return str(versions.get(package, "?")) if isinstance(versions, dict) else "?"

    def _content(self, name: str) -> bytes:
        if (content := content_of(self.path, name)) is not None:
            return content
        if name == MANIFEST:
            raise BundleError(f"{self.path}: is no bundle: no {MANIFEST} can be read there.")
        raise BundleError(f"{self.path}: {name} is missing, or cannot be read. Copy the bundle again.")

    def _names(self) -> list[str]:
        if self.path.is_dir():
            found = [str(file.relative_to(self.path)) for file in self.path.rglob("*") if file.is_file()]
            return [name for name in found if "__pycache__" not in name]
        with zipfile.ZipFile(self.path) as file:
            inner = [name.removeprefix(_prefix(file)) for name in file.namelist()]
        return [name for name in inner if name and not name.endswith("/")]


_UNREADABLE = (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)
"""What reading a zip file raises that was cut or changed."""


def content_of(path: Path, name: str) -> bytes | None:
    """Returns the content of a file of a bundle, which need not be intact; None if it cannot be read."""
    try:
        if path.is_dir():
            return (path / name).read_bytes()
        with zipfile.ZipFile(path) as file:
            return file.read(_prefix(file) + name)
    except _UNREADABLE:
        return None


def _prefix(file: zipfile.ZipFile) -> str:
    """Returns what stands before the names in a zip file: "digits/" if the folder of a bundle was packed."""
    found = [name for name in file.namelist() if name.split("/")[-1] == MANIFEST]
    return min(found, key=len, default="").removesuffix(MANIFEST)


def checked_inputs(entry: EntryPoint, inputs: Arrays, where: str) -> dict[str, np.ndarray]:
    """Returns the inputs as arrays. Raises BundleError if a name, a shape or a dtype is not that of the entry point."""
    for name in [*inputs, *entry.inputs]:
        if name not in entry.inputs or name not in inputs:
            problem = "is missing" if name in entry.inputs else "is no input"
            raise BundleError(
                f"{where}: {name} {problem}. Inputs: {', '.join(f'{n} {x}' for n, x in entry.inputs.items())}."
            )
    sizes: dict[str, int] = {}
    arrays = {name: _input(x, f"{where}: {name}", entry.inputs[name]) for name, x in inputs.items()}
    for name, x in arrays.items():
        wanted = entry.inputs[name]
        fits = len(x.shape) == len(wanted.shape) and all(
            found == size if isinstance(size, int) else found == sizes.setdefault(size, found)
            for found, size in zip(x.shape, wanted.shape, strict=True)
        )
        if not fits or str(x.dtype) != wanted.dtype:
            sizes_text = f" with {', '.join(f'{n}={v}' for n, v in sizes.items())}" if sizes else ""
            raise BundleError(f"{where}: {name} is {array_text(x)}, but the program takes {wanted}{sizes_text}.")
    return arrays


def _input(x: Any, where: str, wanted: Array) -> np.ndarray:
    try:
        return np.asarray(x)
    except ValueError as error:  # lists of several lengths
        raise BundleError(f"{where} is no array ({error}), but the program takes {wanted}.") from error


def array_text(x: np.ndarray) -> str:
    """Returns dtype and shape of an array: "float32[8, 8]"."""
    return f"{x.dtype}[{', '.join(map(str, x.shape))}]"


def load_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file. Raises BundleError if it is none."""
    from safetensors import SafetensorError, deserialize

    try:
        return {name: _array(spec["dtype"], spec["shape"], spec["data"]) for name, spec in deserialize(content)}
    except (SafetensorError, ValueError, TypeError) as error:
        raise BundleError(f"a file of arrays is damaged ({error}). Copy or export the bundle again.") from error


def _array(kind: str, shape: Any, data: bytes) -> np.ndarray:
    """Returns an array of safetensors, whose NumPy reader knows no bfloat16."""
    name = {"BF16": "bfloat16", "BOOL": "bool"}.get(kind) or f"{kind[0].lower()}{int(kind[1:]) // 8}"
    return np.frombuffer(data, np.dtype(name)).reshape(shape)


def save_arrays(arrays: Arrays) -> bytes:
    """Returns the bytes of a safetensors file."""
    from safetensors.numpy import save

    return save({name: np.asarray(x, order="C") for name, x in sorted(arrays.items())})


def check_replaceable(out: Path) -> None:
    """Raises ConfigError if a bundle cannot be written there: something else exists under this name."""
    if out.is_dir() and not (out / MANIFEST).exists() and any(out.iterdir()):
        raise ConfigError(f"--out={out}: the folder exists and holds no bundle. Choose another name.")
    if out.is_file() and content_of(out, MANIFEST) is None:
        raise ConfigError(f"--out={out}: a file exists there, and it is no bundle. Choose another name.")


def write(out: Path, manifest: Mapping[str, Any], files: Mapping[str, bytes], key_file: str | None = None) -> None:
    """Writes a bundle; it appears under its name once it is complete, and replaces an older one.

    Args:
        out: the folder, or a zip file if it ends with ".zip".
        manifest: the manifest without its "files".
        files: name -> content.
        key_file: secret key that signs the manifest.

    Raises:
        ConfigError: it cannot be written there, or the key is not valid.
    """
    check_replaceable(out)
    listed = {name: file_record(content) for name, content in sorted(files.items())}
    content = {MANIFEST: to_text({**manifest, "files": listed}), **files}
    if key_file is not None:
        from engine.bundles.signing import sign

        content[SIGNATURE] = sign(content[MANIFEST], key_file)
    temporary = temporary_path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        (_write_zip if out.suffix == ZIP else _write_folder)(temporary, content)
        old = temporary_path(out) if out.is_dir() else None
        if old is not None:
            os.rename(out, old)
        os.rename(temporary, out)
        if old is not None:
            remove(old)
    except OSError as error:
        raise ConfigError(
            f"--out={out}: cannot be written ({error.strerror or error}). Choose another path."
        ) from error
    finally:
        remove(temporary)


def _write_folder(folder: Path, content: Mapping[str, bytes]) -> None:
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _write_zip(path: Path, content: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, data in sorted(content.items()):
            info = zipfile.ZipInfo(name, _TIME)
            info.external_attr = 0o644 << 16
            file.writestr(info, data)


@functools.cache
def standalone_files() -> dict[str, bytes]:
    """Returns the programs that every bundle holds, such as `check.py`; they do not need Convoy."""
    folder = Path(__file__).parent / "standalone"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.py"))}
