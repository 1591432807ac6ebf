"""What a run computed, in a form that can be compared bit for bit: losses, final state, examples of each step.

`kill_storm.py` and tests/faults use it. It reads the state with Orbax alone, not with the code of the engine that wrote
it.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from engine.checkpoint.manifest import MANIFEST
from engine.run import ledger
from engine.storage.plain_path import plain_path


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Hex of each step's loss, a hash of each array of the newest state, each step's examples."""

    losses: dict[int, str]
    state: dict[str, str]
    examples: dict[int, list[int]]


def outcome(run: Path) -> Outcome:
    """Reads the outcome of a run. Where attempts repeated a step, the last one counts."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: float(row["loss"]).hex() for row in rows if "loss" in row}
    return Outcome(losses, state_hashes(run), ledger.read(run / "examples"))


def saved(run: Path) -> list[int]:
    """Returns the steps of complete checkpoints, the oldest first."""
    folders = [path.parent.name for path in run.glob(f"checkpoints/*/{MANIFEST}")]
    return sorted(int(name) for name in folders if name.isdecimal())


def state_hashes(run: Path, step: int | None = None) -> dict[str, str]:
    """Returns path -> SHA-256 of each array of a saved state, by default the newest."""
    return {path: hashlib.sha256(array.tobytes()).hexdigest() for path, array in state_arrays(run, step).items()}


def state_arrays(run: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Returns path -> array of a saved state, by default the newest."""
    import jax
    import orbax.checkpoint as ocp

    folder = run / "checkpoints" / str(max(saved(run)) if step is None else step) / "state"
    with plain_path(folder) as path, ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = checkpointer.restore(path, args=ocp.args.PyTreeRestore(item=tree, restore_args=args))
    return {
        jax.tree_util.keystr(where, simple=True, separator="/"): np.asarray(leaf)
        for where, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }
