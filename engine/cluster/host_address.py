"""The address at which other hosts find this host, as JAX's CPU collectives (gloo) determine it.

JAX has no public setting for it. gloo takes the first address of the host's own name that it can bind. Debian's
/etc/hosts maps that name to 127.0.1.1, which other hosts cannot reach.
"""

import importlib.metadata
import importlib.util
import ipaddress
import os
import socket
from pathlib import Path


def uses_only_cpu() -> bool:
    """Whether JAX will find no devices but CPUs. Does not start its devices."""
    import jax

    if platforms := jax.config.jax_platforms:
        return platforms.split(",")[0] == "cpu"
    return not importlib.metadata.entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None


def own_address() -> str:
    """Returns the address of the host's own name; "" if the name has no address of this host."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        return ""
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
                return str(address[0])
        except OSError:
            continue
    return ""


def is_loopback(address: str) -> bool:
    """Whether only the same host reaches an IP address or host name."""
    try:
        return ipaddress.ip_address(address.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return address == "localhost"


def network_id() -> str:
    """Returns the same text in processes that share their loopback interface: on one host, and in one container."""
    try:
        return f"{machine_id()} {os.readlink('/proc/self/ns/net')}"
    except OSError:
        return socket.gethostname()


def machine_id() -> str:
    """Returns the same text in processes on one host, also in different containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
