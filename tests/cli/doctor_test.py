"""The arguments of `convoy doctor`; tests of its output are in tests/launch/doctor_test.py."""

from engine.cli.arguments import parse
from engine.cli.main import main


def test_overrides_are_refused(capsys):
    assert main(["doctor", "--config.train.seed=1"]) == 1
    assert "convoy doctor reads the run's own config and takes no overrides" in capsys.readouterr().err


def test_doctor_waits_a_minute_for_other_processes():
    assert parse(["doctor"]).timeout == 60
    assert parse(["doctor", "--timeout=2.5", "--num-processes=2"]).timeout == 2.5
