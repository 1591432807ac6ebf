"""Passwords in addresses are refused in a config, and never printed."""

import pytest

from engine.base.errors import ConfigError
from engine.trackers.addresses import check_no_password, without_password


def test_password_is_refused_without_being_printed():
    with pytest.raises(
        ConfigError, match=r"postgresql://host/db: the address holds a password.* Set MLFLOW_URI"
    ) as found:
        check_no_password("postgresql://ann:secret@host/db", "MLFLOW_URI")
    assert "secret" not in str(found.value)


@pytest.mark.parametrize("password", ["secret", "sec@ret", "sec/ret", "sec:r@t", "5ecret", ""])
def test_whole_password_is_removed(password):
    for path in ("", "/db", "/db/a@b"):
        assert without_password(f"failed: postgresql://ann:{password}@host{path} (x@y)") == (
            f"failed: postgresql://host{path} (x@y)"
        )


@pytest.mark.parametrize("address", ["sqlite:///mlflow.db", "http://host:5000", "http://host:5000/a@b", "folder", ""])
def test_address_without_password_is_unchanged(address):
    check_no_password(address, "X")
    assert without_password(address) == address
