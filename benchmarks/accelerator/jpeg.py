"""Row `data`: the time that training waits for images that are decoded from JPEG, and how fast they are decoded."""

import concurrent.futures
import contextlib
import importlib.util
import statistics

import numpy as np

from benchmarks import interleaved
from benchmarks.accelerator import engine_config
from benchmarks.accelerator.context import Context, Skipped
from benchmarks.accelerator.jobs import Job
from benchmarks.accelerator.models import Vit
from benchmarks.worker import Worker
from engine.config import validate
from engine.config.override import assign
from engine.config.schema import Config
from engine.config.target import build
from engine.data.feed import Batching, TrainFeed
from engine.data.source_adapter import indexed
from engine.parallel.mesh import batch_sharding, make_mesh


def run(context: Context) -> None:
    """Trains the vision transformer on JPEG images, then reads them alone: the engine's feed, threads, and torch."""
    if importlib.util.find_spec("PIL") is None:
        raise Skipped("Pillow, which decodes JPEG, is not installed")
    from benchmarks.accelerator.jpeg_images import JpegImages, cores

    job = Job("vit", context.tiny)
    model = job.model
    assert isinstance(model, Vit)
    total = interleaved.total_steps(model.steps, model.turns)
    config = _config(job, total, cores())
    with interleaved.EngineLoop(config, model.steps) as loop:
        for _ in range(model.turns):
            loop.turn()
    rows = [row for row in loop.rows if "data_wait" in row and row["step"] > model.steps]
    step_s = [row["step_time_s"] for row in rows]
    waits = [100 * row["data_wait"] for row in rows]
    context.record(
        "engine, training", images_per_s=model.batch / statistics.median(step_s), waiting_percent=statistics.mean(waits)
    )

    source = JpegImages(total * model.batch, model.size)
    batches = range(model.steps)
    feed = _feed(config, total)
    pool = concurrent.futures.ThreadPoolExecutor(cores())

    def read_with_threads() -> None:
        for number in batches:
            indices = range(number * model.batch, (number + 1) * model.batch)
            found = list(pool.map(source.__getitem__, indices))
            {name: np.stack([each[name] for each in found]) for name in found[0]}

    with contextlib.ExitStack() as stack:
        stack.enter_context(pool)
        loops = {"engine, feed alone": lambda: [feed.next(1) for _ in batches], "threads alone": read_with_threads}
        seconds = interleaved.interleave(loops, model.turns, title="data")
        if context.machine.torch:
            command = [context.machine.torch, "-m", "benchmarks.accelerator.torch_loader", str(job)]
            worker = stack.enter_context(Worker(command))
            turns = [worker.turn(model.steps)[0] for _ in range(model.turns + 1)]
            seconds["PyTorch, DataLoader alone"] = turns[1:]
    rates = {name: [model.batch * model.steps / s for s in times] for name, times in seconds.items()}
    for name, rate in rates.items():
        context.record(name, images_per_s=rate)
    if not context.machine.torch:
        context.record("PyTorch, DataLoader alone", images_per_s=context.machine.no_torch)
    context.note(f"{model.size} pixels a side, batch {model.batch}, {cores()} threads or processes")
    medians = {name: statistics.median(rate) for name, rate in rates.items()}
    engine = medians.pop("engine, feed alone")
    best = max(medians, key=lambda name: medians[name])
    ratio = medians[best] / engine
    context.summary(
        f"training waits {statistics.mean(waits):.1f} % of its time; time of an image {ratio:.2f} of {best}", ratio
    )


def _config(job: Job, total: int, threads: int) -> Config:
    model = job.model
    assert isinstance(model, Vit)
    c = engine_config.draft(str(job), total)
    c.data = dict(
        target="benchmarks.accelerator.jpeg_images.JpegImages",
        count=total * model.batch,
        size=model.size,
        shuffle=False,
    )
    assign(c, "data.threads", threads)
    return validate(c)


def _feed(config: Config, total: int) -> TrainFeed:
    sharding = batch_sharding(make_mesh(config.mesh))
    batch_size = config.train.global_batch_size
    source = build(config.data, "data")
    return TrainFeed(indexed(source, "data"), config.data, Batching(batch_size, 0, sharding), range(total))
