"""The config of `--fast-dev-run`: a small copy of a config that trains, saves and evaluates for two steps."""

from collections.abc import Callable

from engine.config.draft import Draft, draft_of
from engine.config.override import assign
from engine.config.schema import Arguments, Config, MeshSpec
from engine.config.setting import AUTO
from engine.config.validation import validate

BATCH_SIZE = 8
EVERY_STEP = "1 step"
MEASUREMENTS = 3  # most measurements, at steps 0, 1 and 2: so many without an improvement are not possible


def tiny(config: Config, row_unit: Callable[[Config], int] = lambda config: 1) -> Config:
    """Returns the config of `--fast-dev-run`: two steps, with every period set to one step.

    The overrides of `config.tiny` are applied last. Unless they set these sizes:

    - The batch shrinks to 8 examples, or to the next multiple of `train.accumulate` that fits. It keeps its size if a
      mesh is set, since 8 may not divide over that mesh. An automatic batch has at least 8 examples.
    - Each dataset shrinks to one and a half batches, so that the last evaluation batch is padded.
    - The conditions of `stop` cannot be met before the second step.

    Args:
        config: config of the run.
        row_unit: returns, for a config with an automatic batch, the number of which the rows of a microbatch are a
            multiple.

    Raises:
        FieldError: the overrides of `tiny` make the config invalid.
    """
    draft = draft_of(config)
    _override(draft, config.tiny)  # applied here too: the sizes below depend on them
    train = draft.train
    if train.accumulate == AUTO:
        train.accumulate = 1
    if train.remat == AUTO:
        train.remat = "none"
    if train.global_batch_size == AUTO:
        unit = row_unit(validate(draft, "--fast-dev-run")) * train.accumulate
        train.global_batch_size = -(-BATCH_SIZE // unit) * unit
    elif "train.global_batch_size" not in config.tiny and config.mesh == MeshSpec(cpu_devices=config.mesh.cpu_devices):
        multiple = train.accumulate * max(1, BATCH_SIZE // train.accumulate)
        train.global_batch_size = min(train.global_batch_size, multiple)
    batch_size = train.global_batch_size
    examples = batch_size + max(1, batch_size // 2)
    train.total = "2 steps"
    draft.data.limit = _smaller(config.data.limit, examples)
    for section in (draft.checkpoint, draft.log, *draft.evaluations.values(), *draft.hooks.values()):
        section.every = EVERY_STEP
    if draft.log.layers is not None:
        draft.log.layers = EVERY_STEP
    for evaluation in draft.evaluations.values():
        evaluation.data.limit = _smaller(evaluation.data.limit, examples)
        evaluation.batch_size = _smaller(evaluation.batch_size, batch_size)
    if draft.stop.metric is not None:
        draft.stop.target, draft.stop.patience = None, MEASUREMENTS
    draft.log.trackers = {}
    _override(draft, config.tiny)
    draft.tiny = {}
    return validate(draft, "--fast-dev-run")


def _override(draft: Draft, overrides: Arguments) -> None:
    for path, value in overrides.items():
        assign(draft, path, value)


def _smaller(value: int | None, limit: int) -> int:
    return limit if value is None else min(value, limit)
