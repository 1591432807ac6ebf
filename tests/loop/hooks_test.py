"""Hooks: a read-only state, metrics that are recorded like those of evaluations, and the early end of a run."""

import copy
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine
from engine import metrics
from engine.base.errors import ConfigError, TaskError
from engine.config.schema import Hook
from engine.loop.hooks import ReadOnlyDict, build_hooks, parse
from engine.observe.summary import summary_text
from tests import runs, zoo


def target(name, **settings):
    return dict(target=f"{__name__}.{name}", **settings)


def test_hook_target_must_give_an_object_with_run():
    for path, found in (("builtins.print", "None"), ("builtins.dict", "a dict")):
        with pytest.raises(ConfigError, match=rf"^hooks.a.target: {path} returned {found}, which has no method run"):
            build_hooks({"a": Hook(target=path)})


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (3.0, "returned a float. Return a dict of name -> number, engine.Stop(reason, metrics), or nothing."),
        ({"a b": 1}, "returned the metric name 'a b'. Use text without spaces"),
        ({"a": "high"}, "returned a str as 'walk/a'. Allowed: a number, an array of numbers, an Image"),
        (engine.Stop(""), "returned a Stop with the reason ''. Give a sentence"),
        (engine.Stop("done", {"a": None}), "returned a NoneType as 'walk/a'."),
    ],
)
def test_wrong_results_of_a_hook_are_named(returned, problem):
    with pytest.raises(TaskError, match=re.escape(f"hooks.walk: run {problem}")):
        parse(returned, "walk")


def test_results_of_a_hook_are_named_after_it():
    assert parse(None, "walk") == ({}, "")
    found = {"walk/a": 1.0, "walk/b": 0.5, "walk/c/d": 1.0}
    assert parse({"a": True, "b": np.float32(0.5), "c": {"d": jnp.ones(())}}, "walk") == (found, "")
    assert parse(engine.Stop("why", {"a": 2}), "walk") == ({"walk/a": 2.0}, "why")


class Writes:
    """A hook that tries to change the state in every way, and checks that each attempt raises an error."""

    def run(self, trainer, state, step):
        first = next(iter(state.params))
        for change in (
            lambda: state.params.__setitem__(first, 0 * state.params[first]),
            lambda: state.params.update({first: 0}),
            lambda: state.params.pop(first),
            lambda: state.model_state.clear(),
            lambda: state.ema.setdefault("new", 0),
            lambda: state.opt_state[1][0].mu.__delitem__(first),
        ):
            with pytest.raises(TypeError, match="a hook cannot change the train state"):
                change()
        with pytest.raises(AttributeError):
            state.params = {}
        doubled = jax.tree.map(lambda x: 2 * x, state.params)
        same = jax.tree.map(lambda twice, x: (twice - x == x).all(), doubled, state.params)
        assert same.keys() == state.params.keys() and all(same.values())
        plain = dict(state.params)
        plain[first] = None
        copied = jax.tree.map(jnp.copy, state)
        assert type(copied) is type(state) and copied.params.keys() == state.params.keys()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda values: pickle.loads(pickle.dumps(values))])
def test_copies_of_a_read_only_dict_are_plain_dicts(copied):
    values = copied(ReadOnlyDict({"a": ReadOnlyDict({"b": 1})}))
    values["c"] = 2
    assert type(values) is dict and values == {"a": {"b": 1}, "c": 2}


class Measures:
    """A hook that returns how far its step is from step 6, and ends the run at a given step."""

    def __init__(self, stop_at: int | None = None):
        self.stop_at = stop_at

    def run(self, trainer, state, step):
        curve = metrics.Curve(np.arange(3), np.arange(3.0) * step)
        found = {"distance": abs(step - 6), "norm": jnp.linalg.norm(state.params["head/bias"]), "curve": curve}
        return engine.Stop("the step is reached", found) if step == self.stop_at else found


def test_hook_measures_and_selects_the_best_checkpoint_but_cannot_change_the_training(tmp_path):
    settings = dict(train__ema_decay=0.9, checkpoint__every=None, evaluations={})
    hooks = {"walk": target("Measures", every="3 steps"), "writes": target("Writes", every="2 steps")}
    best = dict(checkpoint__best="walk/distance", checkpoint__best_mode="min")
    plain, hooked = tmp_path / "plain", tmp_path / "hooked"
    engine.train(runs.config(**settings), workdir=plain)
    summary = engine.train(runs.config(hooks=hooks, **best, **settings), workdir=hooked)
    assert runs.rows(plain) == runs.rows(hooked)
    assert runs.rows(hooked, "walk/distance") == {3: 3, 6: 0, 9: 3, 10: 4}
    assert runs.rows(hooked, "walk/curve")[6] == {"x": [0, 1, 2], "y": [0, 6, 12]}
    assert summary.metrics["walk/distance"] == runs.status(hooked)["metrics"]["walk/distance"] == 4
    assert {info.step: info.results["walk/distance"] for info in engine.checkpoints(hooked)} == {6: 0, 9: 3, 10: 4}
    assert summary.best == {"walk/distance": (6, 0.0)}
    assert "step 6: walk/distance 0  walk/norm" in (hooked / "log.txt").read_text()


def test_hook_ends_the_run_which_continues_only_with_other_settings(tmp_path):
    def config(stop_at, every="2 steps"):
        hooks = {"walk": target("Measures", every=every, stop_at=stop_at)}
        return runs.config(hooks=hooks, evaluations__heldout__every=None)

    summary = engine.train(config(6), workdir=tmp_path)
    reason = "stopped early: the hook walk stopped the run: the step is reached"
    assert (summary.state, summary.step, summary.reason, summary.checkpoints) == ("done", 6, reason, [5, 6])
    assert runs.rows(tmp_path, "heldout/loss").keys() == {6}  # evaluations at the end run at the step of the stop
    status = runs.status(tmp_path)
    assert (status["state"], status["exit_code"], status["reason"], status["step"]) == ("done", 0, reason, 6)
    assert "(with other settings of stop, or of the hook)" in summary_text(summary)
    again = engine.train(config(6), workdir=tmp_path)
    assert (again.state, again.step, again.reason) == ("done", 6, reason)
    log = (tmp_path / "log.txt").read_text()
    assert "this run has ended early: the hook walk stopped the run: the step is reached. To continue it, change" in log
    longer = engine.train(config(9, every="3 steps"), workdir=tmp_path)
    assert (longer.state, longer.step) == ("done", 9)
    assert runs.rows(tmp_path).keys() == set(range(1, 10))
    end = engine.train(config(None), workdir=tmp_path)
    assert (end.state, end.step, end.reason) == ("done", 10, "")


def test_metric_that_the_hook_does_not_return_is_an_error(tmp_path):
    hooks = {"walk": target("Measures", every="3 steps")}
    for field in ("checkpoint__best", "stop__metric"):
        config = runs.config(hooks=hooks, evaluations={}, **{field: "walk/distanse", "stop__patience": None} | (
            {"stop__patience": 1} if field == "stop__metric" else {}
        ))  # fmt: skip
        with pytest.raises(TaskError, match=r"= 'walk/distanse': the hook walk has not .*Did you mean walk/distance"):
            engine.train(config, workdir=tmp_path / field)


class Counts(zoo.Classify):
    """A Task that counts how often its evaluation is traced."""

    traced = 0

    def evaluate(self, model, batch):
        Counts.traced += 1
        return super().evaluate(model, batch)


class Evaluates:
    """A hook that runs an evaluation."""

    def run(self, trainer, state, step):
        before, found = Counts.traced, trainer.evaluations[0].run(state)
        return {"loss": found["heldout/loss"], "traced": Counts.traced - before}


@pytest.mark.parametrize("ema", [None, 0.5])
def test_evaluation_in_a_hook_is_not_compiled_again(tmp_path, ema):
    hooks = {"own": target("Evaluates", every="4 steps")}
    settings = dict(task__target=f"{__name__}.Counts", train__ema_decay=ema, train__total="8 steps")
    engine.train(runs.config(hooks=hooks, **settings), workdir=tmp_path)
    assert runs.rows(tmp_path, "own/loss") == runs.rows(tmp_path, "heldout/loss")
    assert runs.rows(tmp_path, "own/traced") == {4: 0, 8: 0}


class Keeps:
    """A hook that uses the state of its earlier call."""

    kept = None

    def run(self, trainer, state, step):
        if self.kept is not None:
            jax.tree.map(np.asarray, self.kept)
        self.kept = state.params


def test_use_of_a_kept_state_says_how_to_copy_it(tmp_path):
    hooks = {"keeps": target("Keeps", every="2 steps")}
    with pytest.raises(RuntimeError, match="deleted"):
        engine.train(runs.config(hooks=hooks, evaluations={}), workdir=tmp_path)
    reason = runs.status(tmp_path)["reason"]
    assert "The hook 'keeps' has kept the state of an earlier call" in reason
    assert "jax.tree.map(jnp.copy, state.params)" in reason


class StopsInOneProcess:
    """A hook that returns other metrics in each process, and ends the run in process 1 only."""

    def run(self, trainer, state, step):
        index = jax.process_index()
        metrics = {"process": index}
        return engine.Stop("process 1 has seen enough", metrics) if index == 1 and step == 4 else metrics


def test_stop_of_one_process_ends_all_at_the_same_step(tmp_path):
    (tmp_path / "config.py").write_text(
        "from tests import runs\n"
        "def get_config():\n"
        "    hooks = {'stops': dict(target='tests.loop.hooks_test.StopsInOneProcess', every='2 steps')}\n"
        "    return runs.config(hooks=hooks, mesh__data=2, evaluations={})\n"
    )
    done = runs.convoy(
        "launch", "local", "--processes=2", "--", "train", f"--config={tmp_path / 'config.py'}",
        f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    status = runs.status(tmp_path / "run")
    assert (status["state"], status["step"]) == ("done", 4)
    assert "the hook stops stopped the run: process 1 has seen enough" in status["reason"]
    assert runs.rows(tmp_path / "run", "stops/process") == {2: 0, 4: 0}
