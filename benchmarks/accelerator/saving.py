"""Row `save`: how long a save delays training, for the engine and for Orbax alone."""

import logging
import statistics

import jax

from benchmarks import report, save_stall
from benchmarks.accelerator.context import Context


def run(context: Context) -> None:
    """Measures both stores in turn, on arrays of the device."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    mib, rounds = (4, 1) if context.tiny else (1024, 3)
    elements = mib * 2**20 // 4 // save_stall.ARRAYS
    stores = {
        "engine": save_stall.engine_store,
        "Orbax alone": lambda directory: save_stall.orbax_store(directory, {"use_compression": False}),
    }
    stalls = {}
    for name, make in stores.items():
        state = {f"array_{i}": jax.random.normal(jax.random.key(i), (elements,)) for i in range(save_stall.ARRAYS)}
        times = save_stall.measure(make, state, rounds)
        stalls[name] = save_stall.stalls(times)
        context.record(
            name,
            stall_ms=[1e3 * seconds for seconds in stalls[name]],
            call_ms=[1e3 * seconds for seconds in times["call"]],
            durable_s=times["durable"],
            device_copy_ms=[1e3 * seconds for seconds in times["copy"]],
        )
    context.note(f"{mib} MiB; a stall is the call of save and what the next step takes longer")
    ratio = statistics.median(report.ratios(stalls["engine"], stalls["Orbax alone"]))
    context.summary(f"stall {ratio:.2f} of Orbax alone", ratio)
