"""A model of `models.py` in the engine's own loop: a worker, whose argument is `jobs.Job` as JSON."""

import contextlib
import dataclasses
import time
from typing import Any

import numpy as np
from flax import nnx

from benchmarks import interleaved
from benchmarks.accelerator import engine_config, jobs
from benchmarks.accelerator.models import Decoder
from benchmarks.accelerator.plain_models import first_weight
from benchmarks.worker import serve
from convoy_zoo.models.decoder import LanguageModel
from convoy_zoo.models.fashion_mnist import Fashion
from convoy_zoo.models.moe_decoder import MoeLanguageModel
from convoy_zoo.models.vit import Vit
from engine import ArraySource
from engine.api.prepared import set_up_devices
from engine.config import validate


@dataclasses.dataclass
class _FirstWeights:
    """Gives the model of another Task the first weights of `models.py`. `job` is that of this worker, as JSON."""

    job: str = ""

    def build(self, rngs: Any) -> Any:
        built: Any = super().build(rngs)  # pyright: ignore[reportAttributeAccessIssue] - of the other Task
        weights = jobs.read_job(self.job).model.weights
        for path, variable in nnx.iter_graph(built):
            if isinstance(variable, nnx.Param):
                name = "/".join(map(str, path))
                variable.set_value(first_weight(name, *weights[name]))
        return built


@dataclasses.dataclass
class EngineDecoder(_FirstWeights, LanguageModel):
    """The decoder. Without `segment_ids` in the data, a row is one document and attention has no mask for documents."""

    def loss(self, model, batch, rng):
        return super().loss(model, {"segment_ids": None, **batch}, rng)


@dataclasses.dataclass
class EngineMoe(_FirstWeights, MoeLanguageModel):
    """The decoder with experts, with one document in each row."""

    def loss(self, model, batch, rng):
        return super().loss(model, {"segment_ids": None, **batch}, rng)


@dataclasses.dataclass
class EngineVit(_FirstWeights, Vit):
    """The vision transformer."""


@dataclasses.dataclass
class EngineCnn(_FirstWeights, Fashion):
    """The CNN."""


def source(job: str) -> ArraySource:
    """Returns the data of a job. Rows of a decoder are those of `engine.Packed`."""
    model, packed = jobs.read_job(job).model, jobs.read_job(job).packed
    arrays = model.data(model.rows())
    if not isinstance(model, Decoder):
        return ArraySource(arrays)
    shape = (len(arrays["tokens"]), model.time)
    rows = {
        "tokens": arrays["tokens"][:, :-1],
        "targets": arrays["tokens"][:, 1:],
        "positions": np.broadcast_to(np.arange(model.time, dtype=np.int32), shape),
        "weight": np.ones(shape, np.float32),
    }
    return ArraySource(rows | ({"segment_ids": np.ones(shape, np.int32)} if packed else {}))


def main() -> None:
    """Trains a turn at a time. The first turn builds and compiles."""
    text = jobs.job_of_process()
    job = jobs.read_job(text)
    with contextlib.ExitStack() as stack:
        loop: list[interleaved.EngineLoop] = []
        done = 0

        def turn(steps: int) -> list[float]:
            nonlocal done
            begin = time.perf_counter()
            if loop:
                loop[0].turn()
            else:
                total = interleaved.total_steps(job.model.steps, job.model.turns)
                config = set_up_devices(validate(engine_config.draft(text, total)))
                engine = interleaved.EngineLoop(config, job.model.steps, devices=jobs.devices(job))
                loop.append(stack.enter_context(engine))  # its first turn runs on entry
            seconds, done = time.perf_counter() - begin, done + steps
            losses: dict[int, float] = {}
            while done not in losses:  # a row arrives from the writer's thread up to 0.1 s after its step
                time.sleep(0.001)
                losses = {row["step"]: row["loss"] for row in list(loop[0].rows) if "loss" in row}
            return [seconds, *(losses[step] for step in range(done - steps + 1, done + 1))]

        serve(turn, jobs.peak_bytes)


if __name__ == "__main__":
    # The classes above are those of the module, which the config names, and not of this program.
    from benchmarks.accelerator import engine_worker

    engine_worker.main()
