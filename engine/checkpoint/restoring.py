"""Reads the state of a step: finds its frozen parameters, and reshapes stacks that another fold has saved."""

from collections.abc import Callable, Mapping
from pathlib import Path

from engine.base.errors import CheckpointError
from engine.base.types import PyTree
from engine.checkpoint import arrays, frozen, tree_compat
from engine.checkpoint.bucket_copy import add_step
from engine.checkpoint.frozen import Frozen, FrozenError
from engine.checkpoint.integrity import DamagedCheckpoint, shorten, verify
from engine.checkpoint.manifest import WITH_FROZEN, Manifest
from engine.cluster import group


def verified_frozen(step: Path, manifest: Manifest, timeout_s: float) -> Frozen | None:
    """Returns the frozen parameters that a step refers to, after a comparison of their files with their manifest.

    Every process calls it, with what `verify` has returned for the step.

    Raises:
        FrozenError: their folder is missing, damaged or another one.
        VerifyTimeout: a process has not answered.
    """

    if manifest.format < WITH_FROZEN:
        return None

    def find() -> tuple[str, str, list[str]] | None:
        found = frozen.find(step)
        return found and (found.folder, found.hash, list(found.paths))

    found = group.run_on_primary(find, "the frozen parameters")
    if found is None:
        return None
    name, identity, paths = found
    folder = step.parent / name
    add_step(folder)
    try:
        whole = verify(folder, timeout_s)
    except DamagedCheckpoint as damaged:
        raise FrozenError(
            f"{folder}: is damaged: {shorten(damaged.problems)}. It has the parameters that the run never changes, "
            f"which {step} and the other checkpoints of the run need. Copy its files from a backup."
        ) from None
    return frozen.with_digests(Frozen(name, identity, tuple(paths)), whole)


def read_state(
    step: Path,
    stored_once: Frozen | None,
    abstract_state: PyTree,
    stacked: Mapping[str, int],
    partial: tree_compat.Partial,
    unreadable: Callable[[str], str],
) -> PyTree:
    """Returns the unverified state of a step.

    Args:
        step: its folder.
        stored_once: what `verified_frozen` returned.
        abstract_state, stacked, partial: as for `CheckpointStore.restore`.
        unreadable: returns the sentence about files that cannot be read, from the text of an error.

    Raises:
        CheckpointError: the files cannot be read, or the step belongs to another model.
    """
    with arrays.reraise(unreadable):
        stored = tree_compat.leaves_of(frozen.describe(step, stored_once))
    abstract_state = tree_compat.without_missing(abstract_state, stored, partial, step)
    wanted = tree_compat.leaves_of(abstract_state)
    if partial is not None:
        stored = {path: leaf for path, leaf in stored.items() if path in wanted}
    folds = tree_compat.other_folds(stored, wanted, stacked)
    if differing := tree_compat.difference(stored | {path: wanted[path] for path in folds}, wanted):
        raise CheckpointError(
            f"{step} is not a checkpoint of this model:\n{differing}\n"
            "Use the config and the code that it was saved with (its folder has the config), start over with "
            "--fresh, or start a run in another --workdir with the weights that fit: "
            f"--config.init.checkpoint={step.parent.parent} and init.paths."
        )
    with arrays.reraise(unreadable):
        as_stored = tree_compat.with_stored_folds(abstract_state, stored, folds)
        state = frozen.read(step, stored_once, as_stored, partial=partial is not None)
    return tree_compat.with_wanted_folds(state, abstract_state, folds)
