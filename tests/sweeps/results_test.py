import pytest

from engine.base.errors import RunError
from engine.sweeps.folder import SweepFolder
from engine.sweeps.results import write_results
from tests.sweeps import scripted
from tests.sweeps.scripted import drive


def test_table_has_a_row_for_each_trial(tmp_path):
    drive(tmp_path, scripted.definition())
    assert write_results(SweepFolder(tmp_path), False) == f"wrote {tmp_path}/trials.csv"
    rows = (tmp_path / "trials.csv").read_text().splitlines()
    assert "optimizer.learning_rate" in rows[0] and len(rows) == 5


def test_config_of_the_best_needs_its_run(tmp_path):
    drive(tmp_path, scripted.definition())  # the runs of scripted workers have no config.txt
    with pytest.raises(RunError, match=r"trials/0003/config\.txt: cannot be read .+ The best trial needs its run"):
        write_results(SweepFolder(tmp_path), True)
    assert (tmp_path / "trials.csv").exists()
