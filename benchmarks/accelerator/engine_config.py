"""The engine's config for a model of `models.py`. It imports no jax, since the import would delay a start."""

from benchmarks.accelerator import jobs
from benchmarks.accelerator.models import LEARNING_RATE, WEIGHT_DECAY
from engine.config import defaults
from engine.config.draft import Draft
from engine.config.override import assign


def draft(text: str, steps: int, cache: bool = False) -> Draft:
    """Returns the config of a job.

    Args:
        text: the job, as JSON.
        steps: length of the run.
        cache: whether compiled programs are kept.
    """
    job = jobs.read_job(text)
    model = job.model
    c = defaults()
    c.task = dict(target=model.task, job=text, **model.arguments)
    c.data = dict(target="benchmarks.accelerator.engine_worker.source", job=text, shuffle=False)
    c.train.total = f"{steps} steps"
    c.train.global_batch_size = model.batch
    c.train.precision = model.precision
    c.optimizer = dict(learning_rate=LEARNING_RATE, schedule="constant", clip_norm=None, weight_decay=WEIGHT_DECAY)
    c.checkpoint.every = None
    c.resilience.hang = "10 minutes"
    c.log.every = "1 step"
    c.log.tensorboard = False
    c.log.progress = "none"
    c.cache.compiled = cache
    if job.devices > 1:
        c.mesh.preset = "fsdp"
    return c


def first_step(text: str) -> Draft:
    """Returns the config of a run that ends after its first step, whose time it reports."""
    c = draft(text, 2, cache=True)
    assign(c, "hooks.first.target", "benchmarks.first_step_hook.FirstStep")
    assign(c, "hooks.first.every", "1 step")
    return c
