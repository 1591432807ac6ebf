"""Frozen parameters are saved once for a run, in `<checkpoints>/frozen-<step>/`, and not again in each step.

They are the parameters that no step of the run changes. The folder has a state and a manifest, as a step has. The file
`FROZEN` of a step names the folder, the hash of its manifest, and the parameters in it. The manifest of the step has
the digests of all parameters, so a save compares them with those in the folder, and a restore with what it has read.
"""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engine.base import json_text
from engine.base.errors import CheckpointError
from engine.base.types import PyTree
from engine.checkpoint import arrays
from engine.checkpoint.bucket_copy import add_step
from engine.checkpoint.manifest import FROZEN, MANIFEST, STATE, DamagedCheckpoint, Manifest, manifest_hash
from engine.cluster.exit_status import ExitStatus

if TYPE_CHECKING:
    import jax

PARAMS = "params"
"""Section of a state that has the parameters."""
LEAST = 0.1
"""Share of a state from which on the frozen parameters are saved once. Below it, a second folder is not worth it."""
_NAME = re.compile(r"frozen-(\d{1,10})")


class FrozenError(CheckpointError):
    """The folder with the frozen parameters of a step is missing, damaged or another one. Every process raises it."""

    exit_code = ExitStatus.STOP
    everywhere = True


@dataclasses.dataclass(frozen=True)
class Frozen:
    """The saved frozen parameters that a step refers to.

    Attributes:
        folder: name of the folder next to the step.
        hash: of its manifest.
        paths: of the parameters.
        digests: path in the state -> digest, in the process that has read or written the manifest.
    """

    folder: str
    hash: str
    paths: tuple[str, ...]
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_text(self) -> str:
        """Returns the text of the file in a step."""
        return json.dumps({"folder": self.folder, "hash": self.hash, "paths": list(self.paths)})

    def left_out_of(self, state: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """Returns a state without these parameters."""
        return without(state, self.paths)

    def changed(self, digests: Mapping[str, str]) -> list[str]:
        """Returns the paths of parameters that have another digest than in the folder."""
        return [path for path, digest in self.digests.items() if digests.get(path) != digest]


def folder_name(step: int) -> str:
    """Returns the name of the folder for the frozen parameters that are saved at a step."""
    return f"frozen-{step}"


def folders(directory: Path) -> list[Path]:
    """Returns the folders with frozen parameters, among the steps of a run."""
    entries = directory.iterdir() if directory.is_dir() else ()
    return sorted(path for path in entries if _NAME.fullmatch(path.name) and (path / MANIFEST).is_file())


def without(state: Mapping[str, PyTree], paths: Collection[str]) -> dict[str, PyTree]:
    """Returns a state without these parameters."""
    left_out = set(paths)
    return {**state, PARAMS: {path: x for path, x in state[PARAMS].items() if path not in left_out}}


def only(state: Mapping[str, PyTree], paths: Collection[str]) -> dict[str, PyTree]:
    """Returns these parameters of a state."""
    return {PARAMS: {path: state[PARAMS][path] for path in paths}}


def worth_it(state: Mapping[str, PyTree], paths: Collection[str]) -> bool:
    """Whether parameters take so much of a state that they are saved once instead of in each step."""
    part = size_of(only(state, paths))
    return part > 0 and part >= LEAST * size_of(state)


def size_of(state: PyTree) -> int:
    """Returns the bytes of the arrays of a state, with each once."""
    import jax

    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def find(step: Path) -> Frozen | None:
    """Returns what a step says about its frozen parameters; None if the step has all parameters.

    Raises:
        FrozenError: their folder is missing, or is another one than when the step was saved.
    """
    try:
        stored = json_text.read(step / FROZEN, {"folder": str, "hash": str, "paths": [str]})
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FrozenError(f"{step / FROZEN}: cannot be read ({json_text.reason(error)}).") from error
    if not _NAME.fullmatch(stored["folder"]):
        raise FrozenError(f"{step / FROZEN}: found the folder {stored['folder']!r}, expected frozen-STEP.")
    folder = step.parent / stored["folder"]
    add_step(folder)
    found = manifest_hash(folder)
    if found != stored["hash"]:
        what = "has changed since the step was saved" if found else "is missing or has no manifest.json"
        raise FrozenError(
            f"{step}: {len(stored['paths'])} parameters that the run never changes are saved once, in {folder}, which "
            f"{what}. Copy that folder next to the step, from where the step was copied or from a backup."
        )
    return Frozen(stored["folder"], stored["hash"], tuple(stored["paths"]))


def damage_of(step: Path) -> DamagedCheckpoint | None:
    """Returns what `find` raises, as damage of the step."""
    try:
        find(step)
    except FrozenError as error:
        return DamagedCheckpoint(step, [str(error)])
    return None


def with_digests(frozen: Frozen, manifest: Manifest) -> Frozen:
    """Returns `frozen` with the digests of the manifest of its folder."""
    return dataclasses.replace(frozen, digests=dict(manifest.arrays))


def describe(step: Path, frozen: Frozen | None) -> dict[str, PyTree]:
    """Returns what `arrays.describe` returns, of a step together with its frozen parameters."""
    stored = arrays.describe(step / STATE)
    if frozen is None:
        return stored
    others = arrays.describe(step.parent / frozen.folder / STATE)
    return {**stored, PARAMS: {**others[PARAMS], **stored.get(PARAMS, {})}}


def read(step: Path, frozen: Frozen | None, abstract_state: PyTree, *, partial: bool = False) -> PyTree:
    """Returns what `arrays.read` returns, of a step together with its frozen parameters."""
    if frozen is None:
        return _read(step, abstract_state, partial)
    wanted: Mapping[str, jax.ShapeDtypeStruct] = abstract_state.get(PARAMS, {})
    there = [path for path in frozen.paths if path in wanted]
    here = without({PARAMS: {}, **abstract_state}, there)
    if not here[PARAMS]:
        del here[PARAMS]
    found = _read(step, here, partial)
    if PARAMS not in abstract_state:
        return found
    others = _read(step.parent / frozen.folder, only(abstract_state, there), True)
    return {**found, PARAMS: {**found.get(PARAMS, {}), **others[PARAMS]}}


def _read(folder: Path, abstract_state: PyTree, partial: bool) -> PyTree:
    """Reads the arrays of one folder; Orbax refuses to read none."""
    import jax

    return (
        arrays.read(folder / STATE, abstract_state, partial=partial)
        if jax.tree.leaves(abstract_state)
        else abstract_state
    )
