"""Measures what a save costs the loop: its stall over the time of a plain copy of the same state.

tools/bazel run //benchmarks:save_stall [-- --mib 500 --rounds 7 --formats]
python -m benchmarks.save_stall

The *stall* is the call of `save`, and the time that the next step, which donates the saved state, takes longer than a
step without a save. Every save is read back, and a difference of one bit is an error. `--formats` compares the ways in
which Orbax stores arrays.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.report import Row

ARRAYS = 20
FORMATS: dict[str, dict[str, Any]] = {
    "zarr2 ocdbt": {"use_compression": False},
    "zarr2 ocdbt zstd": {"use_compression": True},
    "zarr2 files": {"use_compression": False, "use_ocdbt": False},
    "zarr3 ocdbt": {"use_compression": False, "use_zarr3": True},
    "zarr2 ocdbt, 1 GB at once": {"use_compression": False, "save_concurrent_gb": 1},
}

Store = tuple[Callable[[int, Any], Any], Callable[[], Any], Callable[[int, Any], Any]]
"""save(step, state), wait() for the save, and restore(step, want)."""


def engine_store(directory: Path) -> Store:
    """Returns the functions of the engine's checkpointer."""
    from engine.checkpoint.checkpointer import Checkpointer
    from engine.checkpoint.policy import Retention, SavePolicy
    from engine.checkpoint.store import CheckpointStore
    from engine.run.lease import ALWAYS_GRANTED

    store, never = CheckpointStore(directory, ALWAYS_GRANTED), SavePolicy(None, 1, 1, 10**9)
    checkpoints = Checkpointer(store, never, Retention(directory, keep_latest=10**9), "")

    def save(step: int, state: Any) -> None:
        checkpoints.maybe_save(step, state, {"next_batch": step}, force=True)

    return save, checkpoints.finish, store.restore


def orbax_store(directory: Path, options: dict[str, Any]) -> Store:
    """Returns the functions of Orbax alone, with a handler's options."""
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler(**options)
    manager = ocp.CheckpointManager(directory, item_names=("state",), item_handlers={"state": handler})

    def save(step: int, state: Any) -> None:
        manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state)), force=True)

    def restore(step: int, want: Any) -> Any:
        arguments = ocp.checkpoint_utils.construct_restore_args(want)
        args = ocp.args.Composite(state=ocp.args.PyTreeRestore(item=want, restore_args=arguments))
        return manager.restore(step, args=args)["state"]

    return save, manager.wait_until_finished, restore


def measure(make: Callable[[Path], Store], state: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each round: "copy", "step", "call", "next" (the step after the save), "durable".

    Raises:
        RuntimeError: a save did not read back bit for bit.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 1.0001, s), donate_argnums=0)
    copy = jax.jit(lambda s: jax.tree.map(jnp.copy, s))
    times: dict[str, list[float]] = {name: [] for name in ("copy", "step", "call", "next", "durable")}
    want = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)

    def timed(name: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = jax.block_until_ready(function())
        times[name].append(time.perf_counter() - start)
        return result

    state = jax.block_until_ready(step(copy(state)))
    for i in range(rounds):
        report.progress(f"save_stall: round {i + 1} of {rounds}")
        with tempfile.TemporaryDirectory(prefix="save_stall_") as directory:
            save, wait, restore = make(Path(directory))
            timed("copy", lambda: copy(state))  # noqa: B023 - called at once
            state = timed("step", lambda: step(state))  # noqa: B023
            expected = [np.array(x) for x in jax.tree.leaves(copy(state))]  # an array that numpy sees is not donated
            start = time.perf_counter()
            timed("call", lambda: save(i, state))  # noqa: B023
            state = timed("next", lambda: step(state))  # noqa: B023
            wait()
            times["durable"].append(time.perf_counter() - start)
            read = jax.tree.leaves(restore(i, want))
            if not all(np.asarray(a).tobytes() == b.tobytes() for a, b in zip(read, expected, strict=True)):
                raise RuntimeError(f"the save of round {i + 1} is not what was saved")
    return times


def stalls(times: dict[str, list[float]]) -> list[float]:
    """Returns the stall of each round: the call, and what the next step takes longer than a step."""
    return [call + max(0.0, n - s) for call, n, s in zip(times["call"], times["next"], times["step"], strict=True)]


def rows(name: str, mib: int, times: dict[str, list[float]]) -> Iterator[Row]:
    """Yields the rows of what `measure` returned for one store."""
    stall = stalls(times)
    copy_ms = 1e3 * statistics.median(times["copy"])
    for what, seconds in (("the call", times["call"]), ("the call and the slower next step", stall)):
        note = f"copy {copy_ms:.0f} ms, {what} {1e3 * statistics.median(seconds):.0f} ms"
        yield Row(f"{name}, save of {mib} MiB / copy: {what}", report.ratios(seconds, times["copy"]), note=note)
    yield Row(f"{name}, save of {mib} MiB until it is durable", tuple(times["durable"]), "s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this benchmark."""
    parser.add_argument("--mib", type=int, default=500, help="size of the state")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--formats", action="store_true", help="compare Orbax's formats too")


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Measures each store and yields its rows."""
    import jax

    elements = args.mib * 2**20 // 4 // ARRAYS
    state = {f"array_{i}": jax.random.normal(jax.random.key(i), (elements,)) for i in range(ARRAYS)}
    stores: dict[str, Callable[[Path], Store]] = {"engine": engine_store}
    if args.formats:
        import logging

        logging.getLogger("absl").setLevel(logging.ERROR)
        stores |= {f"orbax {name}": lambda d, o=options: orbax_store(d, o) for name, options in FORMATS.items()}
    for name, make in stores.items():
        yield from rows(name, args.mib, measure(make, state, args.rounds))


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    report.main(__doc__, add_arguments, run, tiny=("--mib=2", "--rounds=2"))
