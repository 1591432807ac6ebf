"""A Task, sources and hooks as objects train as if the config named them, and must be passed again later."""

import dataclasses
import functools

import numpy as np
import pytest
from safetensors.numpy import load_file

import engine
from engine.api.prepared import prepare
from engine.base.errors import ConfigError, DataError
from engine.cli.main import main
from engine.config import draft
from engine.observe.summary import summary_text
from tests import runs, zoo
from tests.predicting import Predict, Unreadable


class Count:
    """A hook that counts its calls."""

    def __init__(self):
        self.steps = []

    def run(self, trainer, state, step):
        self.steps.append(step)


def bare(**settings):
    """A config without targets."""
    c = draft.draft_of(runs.config(train__total="4 steps", checkpoint__every="2 steps", **settings))
    c.task, c.data = {}, {"limit": 40}
    c.evaluations, c.hooks = {"heldout": {"every": "2 steps"}}, {"count": {"every": "3 steps"}}
    return c


def objects(**changes):
    found = dict(task=Predict(), data=Unreadable(n=30), evaluation_data={"heldout": Unreadable()})
    return {**found, **changes}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path, hook = tmp_path_factory.mktemp("objects") / "run", Count()
    return path, engine.train(bare(), **objects(hooks={"count": hook}), workdir=path), hook


def next_calls(summary):
    """The Python calls that the summary prints, as functions."""
    names = {**objects(), "hooks": {"count": Count()}, "engine": engine}
    printed = [line.strip().partition("  ") for line in summary_text(summary).splitlines() if "  engine." in line]
    return {name: functools.partial(eval, text.strip().replace("...", "6 steps"), names) for name, _, text in printed}


@pytest.mark.slow
def test_objects_train_as_named_targets_do(trained, tmp_path):
    path, summary, hook = trained
    assert (summary.state, hook.steps) == ("done", [3, 4])
    named = bare()
    named.task, named.data = {"target": "tests.predicting.Predict"}, {"target": "tests.predicting.Unreadable", "n": 30}
    named.evaluations.heldout.data, named.hooks = {"target": "tests.predicting.Unreadable"}, {}
    other = engine.train(named, workdir=tmp_path / "named")
    names = [name for name in other.metrics if name.startswith(("heldout", "loss"))]
    assert {name: summary.metrics[name] for name in names} == {name: other.metrics[name] for name in names}
    engine.export(path, tmp_path / "a.safetensors", task=Predict())
    engine.export(tmp_path / "named", tmp_path / "b.safetensors")
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_objects_are_passed_again_to_use_the_run(trained):
    path, summary, _ = trained
    assert engine.load(path, task=Predict()).task == Predict()
    calls = next_calls(summary)
    measured = calls["evaluate"]()
    assert measured["heldout/loss"] == pytest.approx(summary.metrics["heldout/loss"])
    assert len(engine.predict(path, task=Predict(), data=Unreadable(n=5))["label"]) == 5
    assert engine.train(str(path), **objects(hooks={"count": Count()}), workdir=path).step == 4
    assert calls["train longer"]().step == 6


def test_missing_objects_are_named(trained, capsys):
    path, _, _ = trained
    text = r"started from Python with an object of tests.predicting.Predict, .*engine.load\(run, task=...\)"
    text += r", engine.evaluate\(run, .*evaluation_data=...\)"
    for use in (engine.load, engine.evaluate, lambda run: engine.train(str(run), workdir=run)):
        with pytest.raises(ConfigError, match=text):
            use(path)
    assert main(["train", f"--config={path}", f"--workdir={path}"]) == 1
    assert "For the command line, name a class or function by dotted path" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"an object of tests\.predicting\.Unreadable"):
        engine.train(str(path), task=Predict(), workdir=path)


def test_resume_with_another_object_is_refused(trained):
    path, _, _ = trained
    with pytest.raises(ConfigError, match=r"task.fields.width: 32 -> 5|width"):
        engine.train(str(path), **objects(task=Predict(width=5), hooks={"count": Count()}), workdir=path)
    short = bare()
    short.train.total = "1 step"
    with pytest.raises(ConfigError, match=r"more\. Write such a train\.total, or start a new run with fresh=True"):
        engine.train(short, **objects(hooks={"count": Count()}), workdir=path)
    with pytest.raises(DataError, match="holds a run on another dataset"):
        engine.train(str(path), **objects(data=Unreadable(n=20), hooks={"count": Count()}), workdir=path)


@pytest.mark.slow
def test_paths_and_sections_may_replace_parts_of_a_config_and_try_two_steps(tmp_path):
    summary = engine.train(
        runs.config(evaluations={}),
        task=zoo.Classify(width=8),
        data={"target": "tests.zoo.source", "n": 48},
        hooks={"count": "tests.api.objects_test.Count"},
        fast_dev_run=True,
        workdir=tmp_path,
    )
    assert (summary.state, summary.step) == ("done", 2)
    assert "data.n: 48" in (tmp_path / "config.txt").read_text()


@dataclasses.dataclass
class NoTask:
    """Not a Task."""


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (dict(task=NoTask()), ConfigError, "task: found a NoTask. Pass an object of a subclass of engine.Task."),
        (dict(task=Predict), ConfigError, "task: found the class Predict. Pass an object of a subclass of"),
        (dict(data={"x": np.zeros(3)}), DataError, "data: found a dict, allowed is a source. Pass a dict of arrays to"),
        (dict(evaluation_data={"a": 3}), DataError, r"evaluation_data\['a'\]: found a int without __len__"),
        (dict(hooks={"a": NoTask()}), ConfigError, r"hooks\['a'\]: found a NoTask. Pass an object with a method run\("),
        (dict(hooks={"a": Count}), ConfigError, r"hooks\['a'\]: found the class Count. Pass an object with"),
        (dict(task="tests.zoo.Nothing"), ConfigError, "has no 'Nothing'"),
    ],
    ids=str,
)
def test_objects_of_the_wrong_kind_are_errors_before_the_directory_is_created(given, error, text, tmp_path):
    with pytest.raises(error, match=text):
        engine.train(runs.config(), **given, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["task", "data"])
def test_object_that_is_neither_passed_nor_named_is_missing(name, tmp_path):
    with pytest.raises(ConfigError, match=rf"^{name}: is missing\. Pass {name}=\.\.\., or name a class"):
        engine.train(bare(), **objects(**{name: None}), workdir=tmp_path / "run")


def test_source_target_must_give_a_source():
    for target, found in (
        ("builtins.print", "None"),
        ("builtins.dict", "a dict"),
        ("builtins.object", "a object with"),
    ):
        with pytest.raises(DataError, match=rf"^data.target: {target}: found {found}"):
            prepare(runs.config(data={"target": target}))
        with pytest.raises(DataError, match=rf"^evaluations.a.data.target: {target}: found {found}"):
            prepare(runs.config(evaluations={"a": {"data": {"target": target}}}))
