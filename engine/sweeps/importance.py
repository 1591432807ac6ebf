"""How much each setting of a sweep matters: PED-ANOVA over the completed trials, by Optuna."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from engine.sweeps import study
from engine.sweeps.folder import SweepFolder
from engine.sweeps.records import load_study

FEWEST, ROUGH = 6, 20
"""Completed trials below which there is no estimate, and below which it is called rough."""
BEST_SHARE = 0.25
"""Share of the trials that count as good. Optuna's 0.1 would be two trials of twenty."""


@dataclass(frozen=True)
class Importance:
    """The share of each setting, the largest first; empty, with a note, if there are too few trials."""

    shares: dict[str, float]
    note: str


def importance_of(path: Path) -> Importance:
    """Returns how much each setting of a sweep decides whether a trial is good.

    PED-ANOVA (Watanabe et al. 2023) compares how the good trials are spread over a setting with how all are. It needs
    no further library, and settings with a condition count too.

    Raises:
        RunError: the folder holds no sweep.
        ConfigError: its storage cannot be read.
    """
    folder = SweepFolder(path)
    found = load_study(folder, folder.read())
    optuna = study.load_optuna()
    done = optuna.trial.TrialState.COMPLETE
    count = 0 if found is None else len(found.get_trials(deepcopy=False, states=[done]))
    if found is None or count < FEWEST:
        return Importance({}, f"needs {FEWEST} completed trials, found {count}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
        shares = optuna.importance.get_param_importances(found, evaluator=evaluator)
    if not sum(shares.values()) > 0:
        return Importance({}, f"no setting differs between good and other trials, of {count}")
    rough = ", a rough estimate" if count < ROUGH else ""
    return Importance(dict(shares), f"PED-ANOVA of {count} completed trials{rough}")
