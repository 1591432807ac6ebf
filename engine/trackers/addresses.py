"""Addresses of servers, which may hold a password: it must not get into a file or a message."""

import re

from engine.base.errors import ConfigError

# A password may hold "@" and "/" although an address should escape them; host:port/path@x holds none.
_PASSWORD = re.compile(r"//[^/@:\s]*:(?!\d+/)([^/\s]*@|[^@\s]*@)")


def without_password(address: str) -> str:
    """Returns an address without the user and the password in it."""
    return _PASSWORD.sub("//", address)


def check_no_password(address: str, variable: str) -> None:
    """Raises ConfigError for an address with a password, which the run directory would keep."""
    if _PASSWORD.search(address):
        raise ConfigError(
            f"{without_password(address)}: the address holds a password, and config.txt would keep it. "
            f"Set {variable} to the address instead."
        )
