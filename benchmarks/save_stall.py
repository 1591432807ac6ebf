"""What a save costs the loop: its stall over the time of a plain copy of the same state.

python benchmarks/save_stall.py [--mib 500] [--rounds 7] [--formats]

Prints, for each round's median and range: the copy; the call of `save`; the stall, which is the call and what the next
step, which donates the saved state, takes longer than a step without a save; and the time until the save is durable.
Every save is read back and compared bitwise. `--formats` compares the ways in which Orbax can store arrays. Slow saves
fail nothing.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ARRAYS = 20
FORMATS: dict[str, dict[str, Any]] = {
    "zarr2 ocdbt": {"use_compression": False},
    "zarr2 ocdbt zstd": {"use_compression": True},
    "zarr2 files": {"use_compression": False, "use_ocdbt": False},
    "zarr3 ocdbt": {"use_compression": False, "use_zarr3": True},
    "zarr2 ocdbt, 1 GB at once": {"use_compression": False, "save_concurrent_gb": 1},
}


def engine_store(directory: Path) -> tuple[Callable[[int, Any], Any], Callable[[], Any], Callable[[int, Any], Any]]:
    """(save, wait, restore) of the engine."""
    from engine.checkpoint.checkpointer import Checkpointer
    from engine.checkpoint.policy import Retention, SavePolicy
    from engine.checkpoint.store import CheckpointStore
    from engine.run.lease import ALWAYS_GRANTED

    store, never = CheckpointStore(directory, ALWAYS_GRANTED), SavePolicy(None, 1, 1, 10**9)
    checkpoints = Checkpointer(store, never, Retention(directory, keep_latest=10**9), "")

    def save(step: int, state: Any) -> None:
        checkpoints.maybe_save(step, state, {"next_batch": step}, force=True)

    return save, checkpoints.finish, store.restore


def orbax_store(directory: Path, options: dict[str, Any]):
    """(save, wait, restore) of bare Orbax with a handler's options."""
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


def measure(make: Callable[[Path], Any], state: dict[str, Any], rounds: int) -> tuple[dict[str, list[float]], bool]:
    """Returns seconds by name, one a round, and whether every save was read back bitwise equal."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 1.0001, s), donate_argnums=0)
    copy = jax.jit(lambda s: jax.tree.map(jnp.copy, s))
    times: dict[str, list[float]] = {name: [] for name in ("copy", "step", "call", "next", "durable")}
    want = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    same = True

    def timed(name: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = jax.block_until_ready(function())
        times[name].append(time.perf_counter() - start)
        return result

    state = jax.block_until_ready(step(copy(state)))
    for i in range(rounds):
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
            same &= all(np.asarray(a).tobytes() == b.tobytes() for a, b in zip(read, expected, strict=True))
    return times, same


def spread(values: list[float], scale: float = 1e3, digits: int = 0) -> str:
    """Median and range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle * scale:.{digits}f} ({low * scale:.{digits}f}-{high * scale:.{digits}f})"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=500, help="size of the state")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--formats", action="store_true", help="compare Orbax's formats too")
    arguments = parser.parse_args()
    import jax

    elements = arguments.mib * 2**20 // 4 // ARRAYS
    state = {f"array_{i}": jax.random.normal(jax.random.key(i), (elements,)) for i in range(ARRAYS)}
    ways = {"engine": engine_store}
    if arguments.formats:
        import logging

        logging.getLogger("absl").setLevel(logging.ERROR)
        ways |= {f"orbax {name}": lambda d, o=options: orbax_store(d, o) for name, options in FORMATS.items()}
    print(f"{arguments.mib} MiB in {ARRAYS} arrays, {arguments.rounds} rounds; milliseconds: median (least-most)")
    for name, make in ways.items():
        times, same = measure(make, state, arguments.rounds)
        stall = [c + max(0.0, n - s) for c, n, s in zip(times["call"], times["next"], times["step"], strict=True)]
        calls = [c / copy for c, copy in zip(times["call"], times["copy"], strict=True)]
        stalls = [s / copy for s, copy in zip(stall, times["copy"], strict=True)]
        print(
            f"{name:32} copy {spread(times['copy'])}  call {spread(times['call'])}  stall {spread(stall)}  "
            f"durable {spread(times['durable'])}\n{'':32} call / copy {spread(calls, 1, 2)}  "
            f"stall / copy {spread(stalls, 1, 2)}  read back {'bitwise equal' if same else 'DIFFERENT'}",
            flush=True,
        )


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
