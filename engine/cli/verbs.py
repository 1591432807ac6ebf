"""The table of the verbs, the only list of them. Their order is that of `convoy --help`."""

import argparse
import dataclasses
import importlib
from typing import Any, Protocol


class VerbModule(Protocol):
    """A module that implements a verb. It imports heavy libraries only in `run`, so that help appears at once."""

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None:
        """Adds the arguments to the parser of the verb."""

    def run(self, args: argparse.Namespace, overrides: list[str], /) -> int:
        """Runs the verb and returns the exit code."""
        ...


@dataclasses.dataclass(frozen=True)
class Verb:
    """What the parser and `main` must know about a verb. Its module is `engine.cli.NAME`."""

    name: str
    help: str
    add_help: bool = True  # False: the module adds --help itself
    short_overrides: tuple[str, ...] = ()  # sections that can be overridden without `--config.`
    runs_user_code: bool = True  # which may end the process: a parent waits for it (`cluster/parent.py`)
    prints_result: bool = True  # False: the result is on disk, so output that cannot be written is no error
    actions: tuple[str, ...] = ()  # of a verb that also works without one: its actions, the one that is meant first

    @property
    def module(self) -> VerbModule:
        """The module, which is imported here: the command line loads that of one verb."""
        found: Any = importlib.import_module(f"engine.cli.{self.name}")
        return found


_VERBS = (
    Verb("init", "write a small project that trains at once: config, model, data and a test", runs_user_code=False),
    Verb("train", "train a config; the same command again resumes where the run stopped", prints_result=False),
    Verb("evaluate", "run the evaluations of a run on its checkpoints", short_overrides=("--evaluations.",)),
    Verb(
        "predict",
        "run the predictions of a run over a dataset, and write them to a file",
        short_overrides=("--data.", "--evaluations."),
    ),
    Verb("plot", "show the curves of runs in the terminal, or write them as a picture", runs_user_code=False),
    Verb("report", "write what happened in runs as one HTML file that needs no network", runs_user_code=False),
    Verb("config", "print a resolved config as lines `name: value`", add_help=False),
    Verb("explain", "print the mesh, the memory of a device by part, and the collectives"),
    Verb("plan", "choose mesh, remat, microbatches and memory settings for hardware that may be absent"),
    Verb("tune", "suggest a learning rate or a batch size from a short measurement"),
    Verb("compile", "compile the programs of a run (first state, step, evaluations) before it starts"),
    Verb("checkpoints", "list or verify the checkpoints of a run"),
    Verb(
        "export",
        "write the weights of a run, or a bundle that runs without the engine",
        short_overrides=("--evaluations.",),
    ),
    Verb("import", "match weights of another program with a model, check and convert them"),
    Verb("bench", "measure the latency and memory of the programs of a bundle", runs_user_code=False),
    Verb(
        "runs",
        "list the runs below a folder, with the settings in which they differ",
        runs_user_code=False,
        actions=("list", "lineage", "push"),
    ),
    Verb(
        "sweep",
        "search settings of a config with many runs, on this machine or on a cluster",
        short_overrides=("--space.",),
        prints_result=False,
        actions=("run", "status", "best"),
    ),
    Verb("compare", "print what differs between runs, and whether it is noise", runs_user_code=False),
    Verb("goodput", "print how the time of a run was spent, per attempt", runs_user_code=False),
    Verb(
        "data",
        "write a dataset as ArrayRecord files, or check every example of it",
        short_overrides=("--data.", "--evaluations."),
    ),
    Verb("launch", "run a command in several processes, on this machine or on a cluster", runs_user_code=False),
    Verb(
        "supervise",
        "train, and restart after failures until the run is done",
        runs_user_code=False,
        prints_result=False,
    ),
    Verb("doctor", "print processes, versions and devices found here, and test a collective", runs_user_code=False),
)
VERBS = {verb.name: verb for verb in _VERBS}
