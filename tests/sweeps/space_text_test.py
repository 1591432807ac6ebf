import pytest

from engine.base.errors import ConfigError
from engine.sweeps import choice, log, uniform, when
from engine.sweeps.space_text import parse_domain

FORMS = "uniform(low, high[, step]), log(low, high), integer(low, high[, step]), log_integer(low, high), choice(a, b,"


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        (" log( 1e-4,high = 1e-2 ) ", log(1e-4, 1e-2)),
        ("uniform(-1, 1, points=5)", uniform(-1, 1, points=5)),
        ("choice('a', -1, (1, 'x'), None, True)", choice("a", -1, (1, "x"), None, True)),
        ("when('a.b', ['x', 'y'], log(1e-5, 1e-3))", when("a.b", ["x", "y"], log(1e-5, 1e-3))),
    ],
)
def test_text_of_a_domain_is_parsed(text, domain):
    assert parse_domain(text, "--space.a.b") == domain


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("logg(1, 2)", "found the function 'logg'. Did you mean log? Allowed: " + FORMS),
        ("loguniform(1, 2)", "Did you mean log?"),
        ("log(1)", "log(1): missing a required argument: 'high'. Write log(low, high), and points=N for a grid."),
        ("log(1, 2, point=3)", "got an unexpected keyword argument 'point'"),
        ("log(2, 1)", "log(2, 1): low must be less than high."),
        ("log(1 2)", "cannot be read. Write one of " + FORMS),
        ("choice(a b)", "Texts need quotes: choice('relu', 'gelu')."),
        ("choice(relu)", "found relu as an argument. Write a text in quotes: 'relu'."),
        ("choice(1 + 1)", "found 1 + 1 as an argument. Arguments are numbers, texts,"),
        ("uniform(*[0, 1])", "found *[0, 1] as an argument."),
        ("uniform(0, 1, **{})", "got an unexpected keyword argument '**'"),
        ("log(log(1, 2), 3)", "found log(1, 2) as an argument."),
        ("[1, 2]", "found [1, 2], which is no domain. Did you mean choice(1, 2)?"),
        ("0.5", "found 0.5, which is no domain. Write one of " + FORMS),
        ("__import__('os').getcwd()", "which is no domain."),
        ("choice(__import__('os').getcwd())", "found __import__('os').getcwd() as an argument."),
        ("(" * 500, "cannot be read."),
    ],
)
def test_other_texts_are_refused_with_a_sentence(text, problem):
    with pytest.raises(ConfigError) as error:
        parse_domain(text, "--space.a.b")
    assert str(error.value).startswith("--space.a.b: ") and problem in str(error.value)
