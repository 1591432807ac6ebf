import pytest

from engine.cluster import exit_codes
from engine.config.errors import ConfigError


def test_the_table_is_the_contract_with_launchers():
    assert (exit_codes.DONE, exit_codes.USER_ERROR, exit_codes.RETRY, exit_codes.STOP) == (0, 1, 42, 43)
    assert exit_codes.INTERRUPTED == 130
    assert ConfigError.exit_code == exit_codes.USER_ERROR


@pytest.mark.parametrize("code", [42, 134, 137, 139, 143])
def test_these_are_started_again(code):
    assert exit_codes.is_retried(code)


@pytest.mark.parametrize("code", [0, 1, 43, 130, 2, 255])
def test_these_are_not(code):
    assert not exit_codes.is_retried(code)


def test_every_code_has_words():
    assert exit_codes.describe(42) == "start me again"
    assert exit_codes.describe(137) == "killed by SIGKILL"
    assert exit_codes.describe(7) == "exit code 7, which is not the engine's"
