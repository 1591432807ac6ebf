from engine.sweeps.asking import Asking
from engine.sweeps.space import Space
from engine.sweeps.study import Study
from tests.sweeps import scripted

RATE = "optimizer.learning_rate"


def asking(path, **changes) -> tuple[Asking, Study]:
    definition = scripted.definition(**changes)
    study = Study(str(path / "journal.log"), definition.name, definition.direction)
    return Asking(definition, Space.parse(None, definition.space), study, parallel=False), study


def test_restart_asks_for_the_remaining_points_of_a_grid(tmp_path):
    ask, _ = asking(tmp_path)
    first = [ask.ask(), ask.ask()]
    again, _ = asking(tmp_path)
    found = [*first, again.ask(), again.ask()]
    assert [values[RATE] for _, values in filter(None, found)] == [0.1, 0.2, 0.3, 0.4]
    assert again.ask() is None


def test_points_with_tuples_are_not_repeated(tmp_path):
    space = {"optimizer.b1": "choice(0.9)", "task.sizes": "choice((1, 2), ((3, 4), 5))"}
    found = []
    for _ in range(3):  # the values are read from the storage by a new driver each time
        asked = asking(tmp_path, space=space)[0].ask()
        found.append(asked and asked[1]["task.sizes"])
    assert found == [(1, 2), ((3, 4), 5), None]


def test_more_trials_of_a_restart_are_asked_for(tmp_path):
    assert [asking(tmp_path, sampler="random", trials=1)[0].ask() is None for _ in range(2)] == [False, True]
    ask, study = asking(tmp_path, sampler="random", trials=3)
    assert [ask.ask() is None for _ in range(3)] == [False, False, True]
    assert len({trial.params[RATE] for trial in study.trials()}) > 1


def test_trial_is_pruned_at_the_rung_alone(tmp_path):
    ask, study = asking(tmp_path, prune="halving", rung=10)
    for value in (0.9, 0.1):
        number, _ = ask.ask() or (None, None)
        assert number is not None
        study.report(number, 5, value)
        assert not ask.should_prune(number)
        study.report(number, 10, value)
        assert ask.should_prune(number) == (value == 0.1)


def test_nothing_is_pruned_without_a_pruner(tmp_path):
    ask, study = asking(tmp_path)
    for value in (0.9, 0.1):
        number, _ = ask.ask() or (None, None)
        assert number is not None
        study.report(number, 10, value)
        assert not ask.should_prune(number)
