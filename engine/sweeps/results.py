"""The results of a sweep as files in its folder, which are written at its end."""

from engine.run.atomic import write_text
from engine.sweeps.best import write_best
from engine.sweeps.folder import SweepFolder
from engine.sweeps.records import read_sweep
from engine.sweeps.table import to_csv

TABLE = "trials.csv"


def write_results(folder: SweepFolder, has_best_config: bool) -> str:
    """Writes the table of the trials, and the config of the best one if there is one; returns a sentence.

    Raises:
        RunError: a file cannot be written, or the base config has changed since the sweep.
    """
    table = folder.path / TABLE
    write_text(table, to_csv(read_sweep(folder.path)))
    return f"wrote {table}" + (f" and {write_best(folder.path)}" if has_best_config else "")
