import os

import pytest

from engine.base.errors import RunError
from engine.config import load
from engine.config.text import field_texts
from engine.sweeps.best import write_best
from tests.sweeps.made import CONFIG, complete, make_run, make_sweep, pruned

VALUES = {"optimizer.learning_rate": 2e-3, "task.width": 64, "optimizer.weight_decay": 0.02}
GOLDEN = '''\
"""Trial 1, the best of 3 trials of the sweep digits: heldout/accuracy 0.9."""

from engine.config import load

SETTINGS = [
    "train.total=90 steps",
    "optimizer.learning_rate=0.002",
    "task.width=64",
    "optimizer.weight_decay=0.02",
]


def get_config():
    return load("convoy_zoo.configs.digits", SETTINGS)
'''
TRIALS = [complete(1e-3, 16, 0.5), complete(2e-3, 64, 0.9, runs=["trials/0001"]), pruned(3e-3, 0.95)]


def test_best_trial_is_written_as_a_config_that_is_equal_to_that_of_its_run(tmp_path):
    made = make_sweep(tmp_path / "digits", TRIALS)
    run = make_run(made, 1, VALUES)
    file = write_best(made)
    assert file == made / "best.py" and file.read_text() == GOLDEN
    trained = field_texts(load(str(run)))
    hook = {name: text for name, text in trained.items() if name.startswith("hooks.sweep.")}
    assert hook and field_texts(load(str(file))) == {name: text for name, text in trained.items() if name not in hook}


def test_base_config_in_a_file_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "base.py").write_text(
        f"from engine.config import load\n\ndef get_config():\n    return load({CONFIG!r})\n"
    )
    make_sweep(tmp_path / "sweeps" / "mine", TRIALS, reference="base.py")
    make_run(tmp_path / "sweeps" / "mine", 1, VALUES)
    file = write_best(tmp_path / "sweeps" / "mine")
    assert 'load(str(Path(__file__).parent / "../../base.py"), SETTINGS)' in file.read_text()
    os.mkdir("elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert field_texts(load(str(file)))["task.width"] == "64"


def test_budget_of_the_trials_is_part_of_the_config(tmp_path):
    made = make_sweep(tmp_path / "digits", TRIALS, budget="90 steps", overrides=[])
    make_run(made, 1, VALUES)
    assert '    "train.total=90 steps",\n]' in write_best(made).read_text()


def test_base_config_that_has_changed_is_refused_with_the_difference(tmp_path):
    made = make_sweep(tmp_path / "digits", TRIALS, overrides=["train.total=80 steps"])
    make_run(made, 1, VALUES)
    with pytest.raises(RunError, match=r"train\.total was 90 steps and is 80 steps\. Use the run instead: --config="):
        write_best(made)
    assert not (made / "best.py").exists()


def test_sweep_without_a_completed_trial_or_without_runs_is_refused(tmp_path):
    with pytest.raises(RunError, match="no trial is complete"):
        write_best(make_sweep(tmp_path / "none", [pruned(1e-3, 0.5)]))
    with pytest.raises(RunError, match=r"is a search of a function.*optimizer\.learning_rate=0\.001"):
        write_best(make_sweep(tmp_path / "function", [complete(1e-3, 16, 0.5, runs=["trials/0000"])], reference=""))
