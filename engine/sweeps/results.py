"""The results of a sweep as files in its folder, which are written whenever a trial has ended."""

from engine.sweeps.folder import SweepFolder


def write_results(folder: SweepFolder) -> None:
    """Writes the table of the trials and the config of the best one."""
