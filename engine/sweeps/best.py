"""`convoy sweep best`: writes the best trial of a sweep as a config."""

import os
from collections.abc import Sequence
from pathlib import Path

from engine.base.errors import RunError
from engine.base.files import read_text
from engine.base.formatting import number
from engine.config.loading import CONFIG_TEXT, load
from engine.config.text import field_texts, from_text
from engine.experiments.record import SWEEP_HOOK
from engine.run.atomic import write_text
from engine.storage.mounts import shown
from engine.sweeps.folder import WITHOUT_EFFECT
from engine.sweeps.records import SweepRecord, TrialRecord, read_sweep
from engine.sweeps.space import overrides

NAME = "best.py"
_LENGTH = "train.total"


def write_best(folder: Path) -> Path:
    """Writes the config of the best trial to the folder of its sweep; returns the file.

    The config is that of the run of the trial, without the hook of the sweep.

    Raises:
        RunError: no trial is complete, or the base config has changed since the sweep.
    """
    sweep = read_sweep(folder)
    best = sweep.best
    if best is None:
        raise RunError(f"{folder}: no trial is complete, so there is no best one. See convoy sweep status {folder}.")
    if not sweep.definition.reference:
        values = ", ".join(overrides(best.values))
        raise RunError(f"{folder}: is a search of a function, which has no config. Its best values are: {values}.")
    trained = _config_of(folder / best.runs[0])
    settings = [*sweep.definition.overrides, *overrides(best.values)]
    if sweep.definition.budget:
        settings.append(f"{_LENGTH}={trained[_LENGTH]}")
    file = folder / NAME
    write_text(file, config_text(sweep, best, settings))
    found = field_texts(load(str(file)))
    names = [name for name in {**trained, **found} if not name.startswith(WITHOUT_EFFECT)]
    if changed := [name for name in names if trained.get(name) != found.get(name)]:
        name = changed[0]
        file.unlink()
        raise RunError(
            f"{sweep.definition.reference}: has changed since the sweep: {name} was {trained.get(name)} and is "
            f"{found.get(name)}. Use the run instead: --config={shown(folder / best.runs[0])}."
        )
    return file


def config_text(sweep: SweepRecord, trial: TrialRecord, settings: Sequence[str]) -> str:
    """Returns the text of a config file with the settings of a trial.

    Args:
        sweep: the sweep.
        trial: the trial.
        settings: overrides of the base config of the sweep, each "train.total=2 epochs".
    """
    found = sweep.definition
    reference, imports = _quoted(found.reference), ""
    if Path(os.path.expanduser(found.reference)).exists():  # a file or a run, found again from the folder of this file
        path = os.path.relpath(os.path.expanduser(found.reference), sweep.path)
        reference, imports = f"str(Path(__file__).parent / {_quoted(path)})", "from pathlib import Path\n\n"
    listed = "".join(f"    {_quoted(text)},\n" for text in settings)
    measured = f"{found.metric} {number(trial.value)}"
    head = f"Trial {trial.number}, the best of {len(sweep.trials)} trials of the sweep {sweep.path.name}: {measured}."
    return (
        f'"""{head}"""\n\n'
        f"{imports}from engine.config import load\n\n"
        f"SETTINGS = [\n{listed}]\n\n\n"
        f"def get_config():\n    return load({reference}, SETTINGS)\n"
    )


def _quoted(text: str) -> str:
    """Returns a text as a Python literal, in double quotes where that needs no escapes."""
    return f'"{text}"' if text.isprintable() and not set(text) & set('"\\') else repr(text)


def _config_of(run: Path) -> dict[str, str]:
    """Returns the settings of a run without those of the hook of the sweep."""
    file = run / CONFIG_TEXT
    try:
        texts = field_texts(from_text(read_text(file), str(file)))
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror}). The best trial needs its run.") from error
    return {name: text for name, text in texts.items() if not name.startswith(SWEEP_HOOK)}
