"""Measures the programs of a bundle: latency, load time, memory, and what their layers cost.

Each is measured in a process of its own (`standalone/measure.py`), so that memory and load time are those of it alone.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.base.errors import ConfigError, RunError, did_you_mean
from engine.base.formatting import size_text
from engine.bundles.bundle import Bundle
from engine.bundles.layer_costs import Layer, layers_of_hlo, layers_of_onnx
from engine.bundles.manifest import BundleError, EntryPoint
from engine.bundles.onnx import PYTHON_VARIABLE
from engine.bundles.onnx_equations import einsum_equations

STABLEHLO, ONNX, EAGER = "stablehlo", "onnx", "eager"
TIMES = ("p50", "p90", "p99", "worst", "first", "load")
MEMORY = "memory"
_MEASURE = Path(__file__).parent / "standalone" / "measure.py"
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_LIMIT = re.compile(r"(?P<entry>.+):(?P<name>\w+):(?P<value>\d+(?:\.\d+)?)(?P<unit>[A-Za-z]+)")


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        entries: names of entry points; none for all.
        programs: "stablehlo" and "onnx".
        calls: measured calls.
        warmup: calls before them.
        batch: rows of a call; None for 1, or for the rows of a program that takes no other number.
        cores: numbers of the cores on which each process stays; none for the first usable one.
        onnx_python: Python interpreter with onnxruntime; None for this one, or that of CONVOY_ONNX_PYTHON.
        eager: run directory whose model is measured, too, without being compiled.
    """

    entries: Sequence[str] = ()
    programs: Sequence[str] = (STABLEHLO, ONNX)
    calls: int = 1000
    warmup: int = 100
    batch: int | None = None
    cores: Sequence[int] = ()
    onnx_python: str | None = None
    eager: str | None = None


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The results of one program of an entry point.

    Attributes:
        entry: name of the entry point.
        program: "stablehlo", "onnx" or "eager".
        library: what ran it: "jax 0.12.0, cpu".
        batch: rows of a call.
        calls: measured calls.
        cores: numbers of the cores on which the process stayed.
        seconds: "p50", "p90", "p99", "worst" and "first" of the calls, "load", and "import" of the library.
        memory: largest memory of the process in bytes.
        layers: what the layers of the program cost.
    """

    entry: str
    program: str
    library: str
    batch: int
    calls: int
    cores: Sequence[int]
    seconds: Mapping[str, float]
    memory: int
    layers: Sequence[Layer] = ()


@dataclasses.dataclass(frozen=True)
class Limit:
    """The largest accepted value of a number of an entry point, in seconds or bytes; `text` is the flag."""

    entry: str
    name: str
    value: float
    text: str

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """Returns the limit of a flag: "predict:p99:2ms", "predict:memory:500MiB". Raises ConfigError if it is none."""
        found = _LIMIT.fullmatch(text)
        units = [unit for unit in _UNITS if unit.endswith("B") == (found is not None and found["name"] == MEMORY)]
        if found is None or found["name"] not in (*TIMES, MEMORY) or found["unit"] not in units:
            raise ConfigError(
                f"--limit={text}: write ENTRY:NAME:VALUE, such as predict:p99:2ms or predict:memory:500MiB. Names: "
                f"{', '.join(TIMES)}, {MEMORY}. Units: us, ms, s, KiB, MiB, GiB."
            )
        return cls(found["entry"], found["name"], float(found["value"]) * _UNITS[found["unit"]], text)

    def exceeded(self, found: Measurement) -> bool:
        """Whether a measurement of this entry point is above the limit."""
        return (found.memory if self.name == MEMORY else found.seconds[self.name]) > self.value


def bench(path: str | Path, options: Options, on_message: Callable[[str], None] = print) -> list[Measurement]:
    """Measures the programs of a bundle on this machine.

    Args:
        path: the bundle.
        options: what is measured.
        on_message: called with sentences for the user, such as why a program is not measured.

    Raises:
        BundleError: the bundle is damaged, or nothing of it can run here.
        ConfigError: an option is not valid.
        RunError: a process fails.
    """
    bundle = Bundle(path)
    bundle.check_files()
    if options.onnx_python is None and find_spec("onnxruntime") is None:
        options = dataclasses.replace(options, onnx_python=os.environ.get(PYTHON_VARIABLE))
    entries = [bundle.entry(name) for name in options.entries or bundle.entries]
    cores = checked_cores(options.cores)
    found: list[Measurement] = []
    with tempfile.TemporaryDirectory() as folder:
        for entry, program in _programs(entries, options, on_message):
            flags = [f"--calls={options.calls}", f"--warmup={options.warmup}", f"--cores={','.join(map(str, cores))}"]
            flags += [] if options.batch is None else [f"--batch={options.batch}"]
            start = [options.onnx_python or sys.executable] if program == ONNX else [sys.executable]
            start += [str(_MEASURE)] if program != EAGER else ["-m", "engine.bundles.eager", str(options.eager)]
            result = Path(folder) / f"{len(found)}.json"
            words = [*start, *flags, f"--json={result}", entry.name, program, str(path)]
            _run(words, is_foreign=program == ONNX and options.onnx_python is not None)
            model = bundle.read(entry.programs[ONNX]["file"]) if program == ONNX else b""
            found.append(_measurement(json.loads(result.read_text()), model))
    if not found:
        raise BundleError(f"{path}: no program was measured. Export it with --format=stablehlo,onnx, or see above.")
    return found


def checked_cores(cores: Sequence[int]) -> list[int]:
    """Returns the cores of a measurement. Raises ConfigError for one that this process may not use."""
    usable = sorted(os.sched_getaffinity(0))
    if wrong := [core for core in cores if core not in usable]:
        raise ConfigError(f"--cores: core {wrong[0]} is not usable here. Usable cores: {', '.join(map(str, usable))}.")
    return list(cores) or usable[:1]


def _programs(
    entries: Sequence[EntryPoint], options: Options, on_message: Callable[[str], None]
) -> Iterator[tuple[EntryPoint, str]]:
    """Yields what can be measured here: entry points and their programs."""
    for entry in entries:
        for program in (name for name in options.programs if name in entry.programs):
            if program == ONNX and options.onnx_python is None and find_spec("onnxruntime") is None:
                on_message(
                    f"{entry.name} onnx: not measured, since onnxruntime is not installed here. Add "
                    f"--onnx-python=PATH, a Python interpreter that has it, or set {PYTHON_VARIABLE}."
                )
            else:
                yield entry, program
        if options.eager is not None:
            yield entry, EAGER


def _run(words: Sequence[str], is_foreign: bool) -> None:
    """Runs one measurement in a process."""
    # Compilation is measured, so that nothing may come from a cache.
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    if is_foreign:
        environment.pop("PYTHONPATH", None)  # it names packages for this interpreter
    try:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise ConfigError(f"--onnx-python={words[0]}: cannot be started ({error.strerror or error}).") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        problem = lines[-1].removeprefix("measure.py: ") if lines else f"exit code {done.returncode}"
        raise RunError(f"a measurement failed: {problem}")


def _measurement(found: Mapping[str, Any], model: bytes) -> Measurement:
    layers = layers_of_onnx(found.get("nodes", ()), einsum_equations(model))
    if "hlo" in found:
        layers = layers_of_hlo(found["hlo"], found["seconds"], "args[0]" if found["has_weights"] else "")
    seconds = {name: found[name] for name in (*TIMES, "import")}
    names = ("entry", "program", "library", "batch", "calls", "cores", "memory")
    return Measurement(**{name: found[name] for name in names}, seconds=seconds, layers=layers)


def check_limits(limits: Sequence[Limit], found: Sequence[Measurement]) -> list[str]:
    """Returns a sentence for each limit that is exceeded.

    Raises:
        ConfigError: a limit concerns an entry point that was not measured.
    """
    sentences = []
    for limit in limits:
        concerned = [one for one in found if one.entry == limit.entry and one.program != EAGER]
        if not concerned:
            names = dict.fromkeys(one.entry for one in found if one.program != EAGER)
            raise ConfigError(
                f"--limit={limit.text}: no entry point {limit.entry!r} was measured.{did_you_mean(limit.entry, names)} "
                f"Measured: {', '.join(names) or 'none'}."
            )
        for one in concerned:
            if limit.exceeded(one):
                value = value_text(one, limit.name)
                sentences.append(f"{one.entry} {one.program}: {limit.name} is {value}, above --limit={limit.text}")
    return sentences


def value_text(found: Measurement, name: str) -> str:
    """Returns a number of a measurement as text: "1.2 ms", "250.0 MiB"."""
    return size_text(found.memory) if name == MEMORY else time_text(found.seconds[name])


def time_text(seconds: float) -> str:
    """Returns a time with three digits: "73.1 us", "1.21 ms"."""
    unit = next((unit for unit in ("s", "ms") if seconds >= _UNITS[unit]), "us")
    return f"{seconds / _UNITS[unit]:#.3g}".rstrip(".") + f" {unit}"
