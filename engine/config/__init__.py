"""The config of a run: its schema, how it is written, loaded, checked and printed. Imports no jax."""

from engine.config.dev_run import tiny
from engine.config.draft import Draft, defaults
from engine.config.duration import Duration, Period
from engine.config.errors import (
    CheckpointError,
    ConfigError,
    ConvoyError,
    DataError,
    RunError,
    ShardingError,
    TaskError,
    did_you_mean,
)
from engine.config.help import help_text
from engine.config.identity import identity_differences, schedule_change
from engine.config.load import load
from engine.config.schema import Config
from engine.config.target import build, check, resolve
from engine.config.text import flatten, from_text, to_text
from engine.config.validate import validate

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "ConvoyError",
    "DataError",
    "Draft",
    "Duration",
    "Period",
    "RunError",
    "ShardingError",
    "TaskError",
    "build",
    "check",
    "defaults",
    "did_you_mean",
    "flatten",
    "from_text",
    "help_text",
    "identity_differences",
    "load",
    "resolve",
    "schedule_change",
    "tiny",
    "to_text",
    "validate",
]
