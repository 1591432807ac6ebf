"""`convoy sweep status` and `best`, without a driver."""

import argparse
import json

import pytest

from engine.base.errors import ConfigError
from engine.cli import sweep_show
from tests.sweeps.made import complete, make_run, make_sweep

VALUES = {"optimizer.learning_rate": 1e-3, "task.width": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = make_sweep(tmp_path_factory.mktemp("sweeps") / "digits", [complete(1e-3, 16, 0.5, runs=["trials/0000"])])
    make_run(made, 0, VALUES)
    return made


def show(*words: object) -> int:
    """Runs `convoy sweep` with these words."""
    parser = argparse.ArgumentParser()
    sweep_show.add_actions(parser.add_subparsers(dest="action").add_parser)
    return sweep_show.run_action(parser.parse_args([str(word) for word in words]))


def test_status_is_printed_as_text_and_as_json(folder, capsys):
    assert show("status", folder) == 0
    assert "best        trial 0: heldout/accuracy 0.5" in capsys.readouterr().out
    assert show("status", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["complete"] == 1


def test_table_is_written_as_csv(folder, tmp_path, capsys):
    assert show("status", folder, f"--csv={tmp_path}/trials.csv") == 0
    assert (tmp_path / "trials.csv").read_text().startswith("rank,trial,state,value,")
    assert capsys.readouterr().out == f"wrote {tmp_path}/trials.csv\n"
    with pytest.raises(ConfigError, match="cannot be written"):
        show("status", folder, f"--csv={tmp_path}/no/trials.csv")


def test_best_is_written_with_the_command_that_trains_it(folder, capsys):
    assert show("best", folder) == 0
    assert capsys.readouterr().out == f"wrote {folder}/best.py: convoy train --config={folder}/best.py\n"
