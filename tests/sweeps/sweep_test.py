import re
import resource
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from engine.base.errors import ConfigError, RunError
from engine.sweeps.folder import SweepFolder
from engine.sweeps.space import Space
from engine.sweeps.study import Study
from engine.sweeps.sweep import Search, open_sweep, result_of, run_function, run_search, stoppable
from tests.sweeps import scripted
from tests.sweeps.scripted import drive

REFERENCE = "convoy_zoo.configs.digits"
SPACE = Space.parse(None, {"optimizer.learning_rate": "choice(0.1, 0.2, 0.3)"})


def define(**changes):
    search = Search(reference=REFERENCE, **{"space": SPACE, **changes})
    return search.define(SweepFolder(Path("sweeps/x")), search.config())


def test_defaults_come_from_the_config():
    found = define()
    assert (found.name, found.metric, found.direction, found.trials) == ("x", "heldout/accuracy", "max", 20)
    assert found.config["train.total"] == "30 epochs"
    assert define(metric="heldout/loss").direction == "min"
    assert define(metric="heldout/loss", mode="max").direction == "max"


def test_grid_has_as_many_trials_as_points():
    assert define(sampler="grid").trials == 3
    assert define(sampler="grid", trials=2).trials == 2
    assert define(sampler="grid", trials=99).trials == 3


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sampler": "tpee"}, "--sampler=tpee: unknown. Did you mean tpe?"),
        ({"prune": "halfing"}, "--prune=halfing: unknown. Did you mean halving?"),
        ({"mode": "up"}, "--mode=up: unknown."),
        ({"trials": 0}, "--trials=0: allowed is a whole number from 1."),
        ({"seeds": 0}, "--seeds=0: allowed is a whole number from 1."),
        ({"rung": -1}, "--rung=-1: allowed is a whole number from 0."),
        ({"factor": 1}, "--factor=1: allowed is a whole number from 2."),
        ({"seed": -1}, "--seed=-1: allowed is a whole number from 0."),
        ({"budget": "0 steps"}, "--budget=0 steps: allowed is more than 0."),
        ({"metric": "accuracy"}, "--metric=accuracy: is not the metric of an evaluation. Allowed: heldout/NAME."),
        ({"metric": "held/accuracy"}, "--metric=held/accuracy: the config has no evaluation held. Did you mean heldo"),
        ({"prune": "median", "overrides": ["evaluations.heldout.every=None"]}, "--prune: evaluations.heldout.every is"),
        (
            {
                "prune": "median",
                "metric": "norms/grad",
                "overrides": ["hooks.norms.target=a.b"],
            },
            "--prune: norms/grad is of a hook.",
        ),
    ],
)
def test_argument_that_is_not_allowed_is_named(changes, problem):
    with pytest.raises(ConfigError, match=f"^{re.escape(problem)}"):
        define(**changes)


def test_refused_search_creates_no_folder(tmp_path):
    search = Search(reference=REFERENCE, space=SPACE, metric="heldout/accuracy", mode="up")
    with pytest.raises(ConfigError):
        run_search(search, SweepFolder(tmp_path / "x"), scripted.ScriptedWorkers, print)
    assert not (tmp_path / "x").exists()


def test_sweep_has_the_same_name_from_each_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    search = Search(reference=REFERENCE, space=SPACE)
    for path in (".", tmp_path, "x/.."):
        assert search.define(SweepFolder(Path(path)), search.config()).name == tmp_path.name


def test_workers_are_closed_also_after_an_error(tmp_path):
    closed = []

    class Broken(scripted.ScriptedWorkers):
        def start(self, job):
            raise ConfigError("no")

        def close(self):
            closed.append(True)

    with pytest.raises(ConfigError, match="no"):
        run_search(Search(reference=REFERENCE, space=SPACE), SweepFolder(tmp_path), Broken, lambda text: None)
    assert closed == [True]


def test_result_names_the_best_trial_and_counts_the_failed_ones(tmp_path):
    definition = scripted.definition()
    failures = {0.4: [(1, "ValueError: bad.")]}
    drive(tmp_path, definition, lambda folder: scripted.ScriptedWorkers(folder, failures))
    folder = SweepFolder(tmp_path)
    with open_sweep(folder, definition) as (study, continues):
        found = result_of(folder, study, definition)
    assert continues
    assert (found.trials, found.failed, found.best, found.value) == (4, 1, 2, 0.33)
    assert found.values == {"optimizer.learning_rate": 0.3}


def test_sweep_without_a_completed_trial_has_no_best(tmp_path):
    definition, folder, said = scripted.definition(space={"a": "choice(1, 2)"}), SweepFolder(tmp_path), []
    space = Space.of({"a": "choice(1, 2)"}, of_config=False)

    def objective(trial):
        raise ValueError("bad")

    found = run_function(objective, space, folder, definition, said.append)
    assert (found.best, found.value, found.failed, found.values) == (None, None, 2, {})
    assert said[0] == f"{tmp_path}: searches with 4 trials, 1 at a time"
    run_function(objective, space, folder, definition, said.append)
    assert f"{tmp_path}: continues with 2 of 4 trials, 1 at a time" in said


def test_study_of_another_sweep_in_the_database_is_refused(tmp_path):
    definition = scripted.definition(storage=f"sqlite:///{tmp_path}/sweeps.db")
    Study(definition.storage, definition.name, definition.direction)
    folder, problem = SweepFolder(tmp_path / "rates"), r"holds a study rates already\. Choose another --workdir"
    for _ in range(2):
        with pytest.raises(ConfigError, match=problem), open_sweep(folder, definition):
            pass


def test_journal_on_a_full_disk_ends_with_a_sentence_and_the_sweep_continues(tmp_path):
    definition, folder = scripted.definition(), SweepFolder(tmp_path)
    space = Space.of({"a": "choice(1, 2, 3, 4)"}, of_config=False)
    no_limit, former = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def objective(trial):
        resource.setrlimit(resource.RLIMIT_FSIZE, (folder.journal.stat().st_size + 40, no_limit[1]))
        return 1.0

    try:
        with pytest.raises(RunError, match=r"since a file cannot be written \(File too large\)\. Free some space"):
            run_function(objective, space, folder, definition, print)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)
        signal.signal(signal.SIGXFSZ, former)
    assert run_function(lambda trial: 1.0, space, folder, definition, print).trials == 4


def test_sweep_runs_outside_of_the_main_thread():
    found = []

    def enter():
        with stoppable() as signals:
            found.append(signals.received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [()]


def test_password_in_the_address_of_a_database_is_refused(tmp_path):
    search = Search(reference=REFERENCE, space=SPACE, storage="postgresql://me:secret@host/db")
    with pytest.raises(ConfigError, match=r"--storage: contains a password") as refused:
        search.define(SweepFolder(tmp_path), search.config())
    assert "secret" not in str(refused.value)


def test_folder_that_was_moved_continues(tmp_path):
    definition = scripted.definition()
    drive(tmp_path / "rates", definition)
    (tmp_path / "rates").rename(tmp_path / "moved")
    with open_sweep(SweepFolder(tmp_path / "moved"), replace(definition, name="moved")) as (study, continues):
        assert continues and len(study.trials()) == 4
