import warnings
from typing import Any

import optuna
import pytest
from hypothesis import given

from engine.base.errors import ConvoyError
from engine.config.draft import defaults
from engine.config.override import apply
from engine.sweeps.domains import Choice, When, choice, integer, log, log_integer, uniform, when
from engine.sweeps.space import Space, overrides
from tests.properties import examples
from tests.sweeps.spaces import choices, finite, ranges, spaces

RATE = "optimizer.learning_rate"
MIXED = {
    RATE: log(1e-4, 1e-2),
    "optimizer.target": choice("optax.adam", "optax.lion"),
    "optimizer.b1": when("optimizer.target", "optax.lion", uniform(0.5, 0.95, 0.05)),
    "task.width": log_integer(1, 64),
    "task.layers": integer(1, 9, 2),
    "task.shape": choice((1, 2), (3, 4), None, True),
    "task.dropout": uniform(0, 0.5),
}


@examples(60)
@given(spaces(ranges | choices))
def test_texts_of_a_space_are_parsed_to_the_same_space(domains):
    space = Space.of(domains)
    again = Space.parse(None, space.to_texts())
    assert again == space and list(again.domains) == list(space.domains) and again.to_texts() == space.to_texts()
    assert Space.of(dict(reversed(domains.items()))) == space


@examples(40)
@given(spaces(finite))
def test_values_survive_optuna_and_overrides_exactly(domains):
    space = Space.of(domains)
    for values in space.grid()[:20]:
        assert space.suggest(optuna.trial.FixedTrial(space.params(values))) == values
        draft = defaults()
        apply(draft, overrides(values))
        for name, value in values.items():
            section, _, leaf = name.partition(".")
            found: Any = draft[section]
            assert found[leaf] == value and type(found[leaf]) is type(value)


def sampler_of(name):
    makers = {
        "random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler, "qmc": optuna.samplers.QMCSampler,
        "cmaes": optuna.samplers.CmaEsSampler, "gp": optuna.samplers.GPSampler,
    }  # fmt: skip
    return makers[name](seed=3)


@pytest.mark.parametrize("name", ["random", "tpe", "qmc", "cmaes", "gp"])
def test_suggestions_of_every_sampler_are_inside_of_the_domains(name):
    if name == "gp":
        pytest.importorskip("torch")
    space = Space.of(MIXED)
    with warnings.catch_warnings():  # of experimental samplers, and of those that fall back to random ones
        warnings.simplefilter("ignore")
        study = optuna.create_study(sampler=sampler_of(name))
        lions = 0
        for number in range(25):
            trial = study.ask()
            values = space.suggest(trial)
            for setting, parameter in space.params(values).items():  # Optuna adds up steps: 0.8500000000000001
                exact = not isinstance(parameter, float)
                assert trial.params[setting] == (parameter if exact else pytest.approx(parameter, rel=1e-12))
            lions += values["optimizer.target"] == "optax.lion"
            assert ("optimizer.b1" in values) == (values["optimizer.target"] == "optax.lion")
            for setting, value in values.items():
                domain = MIXED[setting]
                domain = domain.domain if isinstance(domain, When) else domain
                assert domain.contains(value), (setting, value)
                if isinstance(domain, Choice):
                    assert any(value is option or value == option for option in domain.options)
                elif domain.whole:
                    assert type(value) is int
            study.tell(trial, number % 7)
    assert 0 < lions < 25


def test_enqueued_values_are_those_of_the_trial():
    space, study = Space.of(MIXED), optuna.create_study()
    values = {
        "optimizer.target": "optax.lion", "optimizer.b1": 0.6, RATE: 0.01, "task.dropout": 0.5, "task.layers": 3,
        "task.shape": (3, 4), "task.width": 7,
    }  # fmt: skip
    study.enqueue_trial(space.params({**values, "task.shape": [3, 4]}))  # a list, as JSON has it
    assert space.suggest(study.ask()) == values


def test_flags_replace_entries_of_the_file(tmp_path):
    file = tmp_path / "space.py"
    file.write_text(
        "from engine.sweeps import log, uniform\n\n\ndef get_space():\n"
        f"    return {{'{RATE}': log(1e-4, 1e-2), 'task.a': uniform(0, 1), 'task.b': 'choice(1, 2)'}}\n"
    )
    assert Space.parse(str(file), {"task.a": "choice('x')"}).to_texts() == {
        RATE: "log(0.0001, 0.01)",
        "task.a": "choice('x')",
        "task.b": "choice(1, 2)",
    }


def test_a_setting_comes_after_the_setting_of_its_condition():
    texts = {"task.a": "when('task.b', 1, choice(2))", "task.b": "when('task.c', 1, choice(1))", "task.c": "choice(1)"}
    assert list(Space.parse(None, texts).domains) == ["task.c", "task.b", "task.a"]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({}, "The sweep has no search space. Write --space.optimizer.learning_rate="),
        ({"train.totl": "log(1, 2)"}, "train.totl: unknown field (--space.train.totl=log(1, 2)). Did you mean train.t"),
        ({RATE: "uniform(-1, 1)"}, f"{RATE}: found -1.0, allowed is "),
        ({RATE: "choice('a')"}, f"""{RATE}: found "'a'", allowed is a number (--space."""),
        ({"optimizer": "choice(1)"}, "optimizer: is a section, not a setting (--space.optimizer=choice(1)). Name one"),
        (
            {"train.seed": "log(1, 9)"},
            "takes an integer, found log(1.0, 9.0) (--space.train.seed=log(1, 9)). Use log_i",
        ),
        ({"train.total": "uniform(1, 9)"}, "takes a duration, found a range of numbers (--space.train.total=uniform(1"),
        ({"train.total": "choice('2 parsecs')"}, "unknown unit 'parsecs' (--space.train.total=choice('2 parsecs'))."),
        (
            {"task.a": "when('task.bb', 1, choice(1))", "task.b": "choice(1)"},
            "no setting of this space. Did you mean t",
        ),
        ({"task.a": "when('task.b', 3, choice(1))", "task.b": "choice(1, 2)"}, "task.b never is 3. Allowed: values of"),
        (
            {"task.a": "when('task.b', 1, choice(1))", "task.b": "when('task.a', 1, choice(1))"},
            "conditions form a circle: task.a -> task.b -> task.a.",
        ),
    ],
)
def test_mistakes_in_a_space_are_refused_with_a_sentence(flags, problem):
    with pytest.raises(ConvoyError) as error:
        Space.parse(None, flags)
    assert problem in str(error.value)


def test_values_of_unknown_settings_are_refused():
    with pytest.raises(ConvoyError, match=r"task\.widht: is no setting of the space\. Did you mean task\.width"):
        Space.of(MIXED).params({"task.widht": 3})
