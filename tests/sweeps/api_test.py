import re

import pytest

from engine.base.errors import ConfigError
from engine.config import load
from engine.sweeps.api import sweep
from tests import runs

SPACE = {"rate": "choice(0.1, 0.2)"}


def test_function_is_searched_and_the_same_call_continues(tmp_path):
    calls = []

    def objective(trial):
        calls.append(trial.values)
        return (trial["rate"] - 0.2) ** 2

    for trials in (1, 2, 2):
        found = sweep(objective, SPACE, trials=trials, mode="min", sampler="grid", workdir=tmp_path)
    assert calls == [{"rate": 0.1}, {"rate": 0.2}]
    assert (found.best, found.value, found.values, found.folder) == (1, 0.0, {"rate": 0.2}, tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"metric": "a/b"}, "metric: has no meaning for a function. Leave it out."),
        ({"budget": "5 steps"}, "budget: has no meaning for a function. Leave it out."),
        ({"parallel": 2}, "parallel: has no meaning for a function. Leave it out."),
        ({"devices_per_trial": 2}, "devices_per_trial: has no meaning for a function. Leave it out."),
        ({"mode": "auto"}, "mode='auto': a function needs 'max' or 'min'."),
        ({"seeds": 2}, "seeds: a function is called once for each trial."),
        ({"space": "space.py"}, "space='space.py': a function needs a dict: argument -> domain."),
        ({"workdir": None}, "workdir: is missing."),
        ({"workdir": "gs://bucket/x"}, "--workdir=gs://bucket/x: a sweep needs a folder"),
        ({"space": {}}, "The sweep has no search space."),
    ],
)
def test_argument_without_meaning_for_a_function_is_named(tmp_path, changes, problem):
    arguments = {"space": SPACE, "mode": "max", "workdir": tmp_path, **changes}
    with pytest.raises(ConfigError, match=f"^{re.escape(problem)}"):
        sweep(lambda trial: 0.0, arguments.pop("space"), **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.filterwarnings("ignore:.*fork")  # of JAX, if another test has imported it
def test_config_object_is_searched_and_a_changed_one_is_refused(tmp_path, monkeypatch):
    for name, value in runs.COMPILING.items():
        monkeypatch.setenv(name, value)

    def search(*overrides):
        config = load("convoy_zoo.configs.digits", ["train.total=1 epoch", "log.tensorboard=False", *overrides])
        space = {"optimizer.learning_rate": "choice(0.0, 3e-3)"}
        folder = tmp_path / "a sweep"
        return sweep(config, space, sampler="grid", workdir=folder, parallel=1, on_message=said.append)

    said: list[str] = []
    found = search()
    assert (found.trials, found.failed, found.values) == (2, 0, {"optimizer.learning_rate": 3e-3})
    assert found.value is not None and found.value > 0.5
    trained = load(str(found.folder / "best.py"))
    assert (str(trained.train.total), trained.optimizer.learning_rate) == ("1 epoch", 3e-3)
    before = (found.folder / "logs" / "trial-0001.log").read_bytes()
    assert search("log.every=2 epochs") == found  # which changes no result
    assert (found.folder / "logs" / "trial-0001.log").read_bytes() == before
    with pytest.raises(ConfigError, match=r"another definition: config: task\.width was 128 and is 64\. Use the same"):
        search("task.width=64")
