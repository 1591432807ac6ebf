"""What a worker is asked to train, as one argument on its command line. It imports jax only where it is used."""

import dataclasses
import json
import sys
from typing import Any

from benchmarks.accelerator import models
from benchmarks.accelerator.models import Model
from benchmarks.worker import rss_peak


@dataclasses.dataclass(frozen=True)
class Job:
    """A model and how it is trained.

    Attributes:
        name: name of the model.
        tiny: whether it has its tiny size.
        packed: whether rows have segment ids, so that attention gets a mask.
        devices: the first devices of JAX, over which the model is split.
    """

    name: str
    tiny: bool
    packed: bool = False
    devices: int = 1

    @property
    def model(self) -> Model:
        """The model, whose batch grows with the devices."""
        model = models.model(self.name, self.tiny)
        return dataclasses.replace(model, batch=model.batch * self.devices)

    def __str__(self) -> str:
        return json.dumps(dataclasses.asdict(self))


def read_job(text: str) -> Job:
    """Returns a job from its text."""
    return Job(**json.loads(text))


def job_of_process() -> str:
    """Returns the text of this worker's job."""
    return sys.argv[1]


def devices(job: Job) -> list[Any]:
    """Returns the devices of a job."""
    import jax

    return jax.devices()[: job.devices]


def peak_bytes() -> int:
    """Returns the peak memory of the devices, or of this process where they have no memory of their own."""
    import jax

    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    return max(peaks) if peaks else rss_peak()
