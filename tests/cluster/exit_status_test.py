import pytest

from engine.base.errors import ConfigError
from engine.cluster.exit_status import ExitStatus, describe, is_retried


def test_exit_codes_are_stable():
    assert (ExitStatus.DONE, ExitStatus.USER_ERROR, ExitStatus.RETRY, ExitStatus.STOP) == (0, 1, 42, 43)
    assert ExitStatus.INTERRUPTED == 130
    assert ConfigError.exit_code == ExitStatus.USER_ERROR


@pytest.mark.parametrize("code", [42, 134, 137, 139, 143])
def test_retried_codes(code):
    assert is_retried(code)


@pytest.mark.parametrize("code", [0, 1, 43, 130, 2, 255])
def test_final_codes_are_not_retried(code):
    assert not is_retried(code)


def test_describe_exit_codes():
    assert describe(42) == "start it again"
    assert describe(137) == "killed by SIGKILL"
    assert describe(7) == "exit code 7, which is not the engine's"
