"""Reads the images of row `data` with torch's DataLoader: a worker, whose argument is `jobs.Job` as JSON."""

import itertools
import time

from torch.utils.data import DataLoader  # pyright: ignore[reportMissingImports]

from benchmarks.accelerator import jobs
from benchmarks.accelerator.jpeg_images import JpegImages, cores
from benchmarks.accelerator.models import Vit
from benchmarks.worker import serve


def main():
    """Reads a turn at a time."""
    model = jobs.read_job(jobs.job_of_process()).model
    assert isinstance(model, Vit)
    source = JpegImages(model.batch * model.steps * (model.turns + 2), model.size)
    batches = iter(DataLoader(source, model.batch, num_workers=cores()))

    def turn(steps):
        begin = time.perf_counter()
        for _ in itertools.islice(batches, steps):
            pass
        return [time.perf_counter() - begin]

    serve(turn)


if __name__ == "__main__":
    main()
