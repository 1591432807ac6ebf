"""The number itself is checked by `budget_test.py`, in a child process as the driver does it."""

from engine.sweeps.flops import main


def test_config_that_is_refused_ends_with_a_sentence(capsys):
    assert main("convoy_zoo.configs.digits", "train.totl=3") == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert "unknown field" in found.err
