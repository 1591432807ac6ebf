"""`convoy goodput` prints the table of a run; tests of the table are in tests/observe."""

from engine.cli.main import main


def test_goodput_prints_the_attempts_of_a_run(digits, capsys):
    assert main(["goodput", str(digits[0])]) == 0
    printed = capsys.readouterr()
    assert "goodput" in printed.out and "compil" in printed.out
    assert printed.err == ""


def test_overrides_are_refused(capsys):
    assert main(["goodput", "nowhere", "--config.train.seed=1"]) == 1
    assert "convoy goodput reads the run's own config and takes no overrides" in capsys.readouterr().err
