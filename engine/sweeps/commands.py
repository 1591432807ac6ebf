"""The commands of the runs of a sweep: `convoy train` with the values of a trial, its seed, budget and hook."""

from collections.abc import Mapping, Sequence

from engine.config.loading import load
from engine.config.schema import Config, Plain
from engine.sweeps.budget import Budget
from engine.sweeps.folder import Definition, SweepFolder
from engine.sweeps.space import overrides
from engine.sweeps.workers import Job

HOOK = "sweep"
"""Name of the hook of each trial."""


class Commands:
    """Makes the command of each run.

    Args:
        definition: the definition of the sweep.
        folder: the folder of the sweep.
        config: the base config.
    """

    def __init__(self, definition: Definition, folder: SweepFolder, config: Config):
        self._definition, self._folder, self._config = definition, folder, config
        self._budget = Budget.parse(definition.budget)

    def words(self, values: Mapping[str, Plain], seed: int, job: Job) -> list[str]:
        """Returns the words after `convoy` of a run.

        Args:
            values: setting -> value of the trial.
            seed: index of the seed, from 0.
            job: the job of the run.

        Raises:
            ConfigError: the config refuses a value.
        """
        reference = self._definition.reference
        mine = [*self._definition.overrides, *overrides(values)]
        mine += self._budget.overrides(reference, mine)
        if self._definition.seeds > 1:
            mine.append(f"train.seed={(self._config.train.seed + seed) % 2**32}")
        mine += self._hook(seed, job)
        load(reference, mine)
        return ["train", f"--config={reference}", *(f"--config.{text}" for text in mine), f"--workdir={job.run}"]

    def _hook(self, seed: int, job: Job) -> Sequence[str]:
        """Returns the overrides that add the hook of the trial, if it has a task there."""
        arguments = {}
        if self._definition.prune and seed == 0:
            arguments["decisions"] = str(self._folder.decision(job))
        if self._budget.seconds is not None:
            arguments |= {"seconds": str(self._budget.seconds), "clock": str(self._folder.clock(job))}
        if not arguments:
            return []
        evaluation = self._config.evaluations.get(self._definition.metric.partition("/")[0])
        every = {} if evaluation is None or evaluation.every is None else {"every": str(evaluation.every)}
        fields = {"target": "engine.sweeps.pruning.Pruning", **every, **arguments}
        return [f"hooks.{HOOK}.{name}={value}" for name, value in fields.items()]
