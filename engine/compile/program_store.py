"""Loads the programs of a run from a folder that `convoy compile` wrote.

A program is loaded only if all that it depends on (`key.py`) is equal to that of the program that would be
compiled. Otherwise it is compiled, and a warning names the difference. All processes of a run load a program, or all
compile it: the processes of a run on GPUs share the work of tuning the kernels that they compile, so one that compiles
alone may wait for the others.
"""

import errno
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.sharding import Mesh

from engine.base import json_text
from engine.base.errors import ConfigError, first_line
from engine.base.files import replacing, set_aside
from engine.cluster import group
from engine.compile import cache
from engine.compile.compiler import ProgramCompiler
from engine.compile.key import describe_program, digest
from engine.compile.options import Value
from engine.compile.trusted_folder import check_trusted, read_trusted

FORMAT = 1
_SECTIONS = ("task.", "data.", "optimizer.", "train.", "mesh.", "sharding.", "evaluations.")
_SHOWN = 3  # differences in a warning
LOAD_S = 300.0  # for all processes to load a program


class StoredPrograms(ProgramCompiler):
    """Loads programs, or compiles and stores them. Several threads may use it.

    Args:
        folder: folder of the compiled programs.
        store: compile each program and store it, instead of loading it.
        config: text of the config of the run, which explains a difference.
        say: called with sentences for the user.

    Raises:
        ConfigError: the folder does not exist, or other users may write to it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        store: bool = False,
        config: str = "",
        say: Callable[[str], None] = lambda text: None,
    ):
        super().__init__(say)
        self._folder, self._store, self._config = folder, store, config
        self.loaded: list[str] = []
        """Names of the programs that were loaded."""
        if not store and not folder.is_dir():
            raise ConfigError(f"cache.programs: {folder} is not a folder. convoy compile --out={folder} makes it.")
        if folder.is_dir():
            check_trusted(folder)

    def compile(
        self, name: str, lowered: jax.stages.Lowered, mesh: Mesh, options: Mapping[str, Value] | None = None
    ) -> jax.stages.Compiled:
        facts = describe_program(lowered, mesh, options or {})
        if self._store:
            begin = time.monotonic()
            # Serializing a program from the cache gives one that fails at its call (jax 0.12: "Function not found").
            with cache.disabled():
                compiled = lowered.compile()
            seconds = time.monotonic() - begin
            try:
                payload = serialize_executable.serialize(compiled)[0]
            except Exception as error:  # pickle and JAX raise many types
                self.say(
                    f"warning: program {name!r} is not stored, so the job compiles it: {type(error).__name__}: "
                    f"{first_line(error)}. Programs that call Python (jax.debug.print, jax.pure_callback) cannot be."
                )
            else:
                self._write(name, facts, payload, seconds)
            return compiled
        loaded, problem = self._load(name, facts, lowered, mesh)
        if problem := group.decide(problem, first_problem, f"load program/{name}", LOAD_S):
            self.say(
                f"warning: program {name!r} is compiled now, since {problem}. To renew the "
                "folder, run convoy compile again."
            )
        elif loaded is not None:
            self.loaded.append(name)
            return loaded
        return lowered.compile()

    def _write(self, name: str, facts: Mapping[str, str], payload: bytes, seconds: float) -> None:
        entry = {
            "format": FORMAT,
            "name": name,
            "facts": dict(facts),
            "sha256": digest(payload),
            "bytes": len(payload),
            "compile_s": round(seconds, 3),
            "config": self._config,
        }
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # a compiled program is code that will be run
        check_trusted(self._folder)
        path = _path(self._folder, name, facts)
        for target, content in ((path, payload), (path.with_suffix(".json"), json.dumps(entry, indent=1).encode())):
            if target.is_dir():
                set_aside(target, "program, which is written again", OSError(errno.EISDIR, "it is a folder"))
            # The mode is set at the creation: no other user can open the file before, and some mounts refuse chmod.
            with replacing(target, mode=0o600) as file:
                file.write(content)

    def _load(
        self, name: str, facts: Mapping[str, str], lowered: jax.stages.Lowered, mesh: Mesh
    ) -> tuple[jax.stages.Compiled | None, str]:
        """Returns the stored program and ""; or None and the reason, if there is none that fits."""
        path = _path(self._folder, name, facts)
        try:
            entry = read_entry(path.with_suffix(".json"))
            if entry is None and os.path.lexists(path.with_suffix(".json")):
                return None, f"{path.with_suffix('.json')} is damaged or cannot be read"
            if entry is None or entry["facts"] != dict(facts):
                return None, f"{self._folder} {self._difference(name, facts)}"
            payload = read_trusted(path)
            if digest(payload) != entry["sha256"]:
                return None, f"{path} is damaged: its hash is not that in {path.with_suffix('.json').name}"
            devices = list(mesh.devices.flat)
            loaded = serialize_executable.deserialize_and_load(
                payload, lowered.in_tree, lowered.out_tree, devices[0].client, devices
            )
        except Exception as error:  # storage, pickle or XLA, which checks its own version, may fail
            return None, f"{path} cannot be loaded ({type(error).__name__}: {first_line(error)})"
        return loaded, ""

    def _difference(self, name: str, facts: Mapping[str, str]) -> str:
        """Returns how the stored program of this name that is nearest differs from the one that is needed."""
        found = [entry for path in sorted(self._folder.glob("*.json")) if (entry := read_entry(path))]
        same = [entry for entry in found if entry["name"] == name]
        if not same:
            names = ", ".join(sorted({entry["name"] for entry in found})) or "no program that this user can read"
            return f"holds {names}"
        nearest = min(same, key=lambda entry: sum(entry["facts"].get(key) != facts[key] for key in facts))
        texts = [
            self._program_difference(nearest["config"]) if key == "program" else f"{key} {stored} (here {here})"
            for key, here in facts.items()
            if (stored := nearest["facts"].get(key)) != here
        ]
        return f"has it for {', '.join(texts)}"

    def _program_difference(self, config: str) -> str:
        """Returns which settings differ from those of a stored program."""
        before, here = (dict(line.split(": ", 1) for line in _lines(text)) for text in (config, self._config))
        changed = [
            f"{name} {before.get(name, '(none)')} (here {here.get(name, '(none)')})"
            for name in {**before, **here}
            if before.get(name) != here.get(name)
        ]
        if not changed:
            return "another program of the same config (its code, its data or its paths have changed)"
        return ", ".join(changed[:_SHOWN]) + (f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else "")


def first_problem(problems: Mapping[int, str], missing: Sequence[int]) -> str:
    """Returns why the processes compile a program; "" if all have loaded it."""
    if missing:
        return f"process {missing[0]} has not loaded it within {LOAD_S:.0f} s"
    found = [(process, text) for process, text in sorted(problems.items()) if text]
    if not found or found[0][0] == 0:  # the message is that of process 0
        return found[0][1] if found else ""
    return f"on process {found[0][0]} {found[0][1]}"


def read_entry(path: Path) -> dict[str, Any] | None:
    """Returns the description of a stored program; None if there is none that this version can read."""
    try:
        entry = json_text.read(path, _SHAPE)
    except (OSError, ValueError):
        return None
    return entry if entry["format"] == FORMAT else None


_SHAPE = {"format": int, "name": str, "facts": {str: str}, "sha256": str, "config": str, str: object}


def _path(folder: Path, name: str, facts: Mapping[str, str]) -> Path:
    slug = re.sub(r"[^\w.-]+", "-", name)
    return folder / f"{slug}-{digest(repr(sorted(facts.items())).encode())[:16]}.program"


def _lines(config: str) -> list[str]:
    return [line for line in config.splitlines() if line.startswith(_SECTIONS) and ": " in line]
