"""The connection of this process to a Ray cluster.

Ray is an extra: only this package imports it, inside of functions.
"""

import logging
import os
from types import ModuleType

from engine.base.errors import ConfigError

ADDRESS = "RAY_ADDRESS"
"""Ray's environment variable with the address of the cluster, HOST:PORT or ray://HOST:PORT."""


def connect(address: str | None = None) -> ModuleType:
    """Returns the module `ray`, connected to a running cluster.

    Args:
        address: HOST:PORT of the cluster; None: that of `RAY_ADDRESS`, else the cluster that runs on this machine.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        from engine.base.extras import install_command

        raise ConfigError(f"Ray is not installed: {install_command('ray')}.") from error
    if ray.is_initialized():
        return ray
    wanted = address or os.environ.get(ADDRESS) or "auto"
    try:
        ray.init(wanted, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, OSError, ValueError) as error:
        where = "on this machine" if wanted == "auto" else f"at {wanted}"
        raise ConfigError(
            f"no Ray cluster answers {where} ({str(error).splitlines()[0]}). Start one with `ray start --head`, and "
            f"`ray start --address=HOST:6379` on the other machines, or set {ADDRESS}."
        ) from error
    return ray
