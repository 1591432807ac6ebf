"""Two network namespaces that act as two hosts: each with its own interfaces, its own name and its own /etc/hosts."""

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests import runs

ADDRESSES = ("10.77.0.1", "10.77.0.2")
NOWHERE = "02:00:00:00:00:ff"  # a hardware address that no interface has


class TwoHosts:
    """Two hosts with a cable between them, which `cut` interrupts."""

    def __init__(self, names: Sequence[str], interfaces: Sequence[str]):
        self._names, self._interfaces = names, interfaces

    def prefix(self, host: int) -> tuple[str, ...]:
        """Returns the start of a command that runs the rest on a host, whose name is host-a or host-b."""
        script = f'hostname host-{"ab"[host]} && exec "$@"'
        return ("ip", "netns", "exec", self._names[host], "unshare", "--uts", "sh", "-c", script, "sh")

    @staticmethod
    def variables(process: int) -> dict[str, str]:
        """Returns the variables of one of two training processes, of which process 0 is on host 0."""
        process_id = {"CONVOY_NUM_PROCESSES": "2", "CONVOY_PROCESS_ID": str(process)}
        return {"CONVOY_COORDINATOR": f"{ADDRESSES[0]}:8476", **process_id}

    def start(self, process: int, *words: str) -> subprocess.Popen[str]:
        """Starts one of two training processes on its host; the caller must end it."""
        return subprocess.Popen(
            [*self.prefix(process), *runs.command(*words)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=runs.environment(**self.variables(process)),
        )  # fmt: skip

    def cut(self) -> None:
        """Makes every packet between the hosts disappear without an error."""
        for side in range(2):
            _ip("-n", self._names[side], *self._neighbour("replace", side), *f"lladdr {NOWHERE} nud permanent".split())

    def heal(self) -> None:
        """Undoes `cut`."""
        for side in range(2):
            _ip("-n", self._names[side], *self._neighbour("del", side))

    def _neighbour(self, verb: str, side: int) -> list[str]:
        return ["neigh", verb, ADDRESSES[1 - side], "dev", self._interfaces[side]]


@contextlib.contextmanager
def two_hosts(own_addresses: Sequence[str] = ADDRESSES) -> Iterator[TwoHosts]:
    """Creates two hosts; skips the test where that is not possible.

    Args:
        own_addresses: to which each host resolves its own name, by its /etc/hosts.
    """
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    mark = uuid.uuid4().hex[:6]
    names, interfaces = ([f"{start}{mark}{side}" for side in "ab"] for start in ("convoy-", "cv"))
    with contextlib.ExitStack() as stack:
        try:
            for name, address, side in zip(names, own_addresses, "ab", strict=True):
                _ip("netns", "add", name)
                stack.callback(_ip, "netns", "del", name)
                folder = Path("/etc/netns") / name
                folder.mkdir(parents=True)
                stack.callback(shutil.rmtree, folder)
                (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address} host-{side}\n")
            _ip("link", "add", interfaces[0], "type", "veth", "peer", "name", interfaces[1])
            for name, address, interface in zip(names, ADDRESSES, interfaces, strict=True):
                _ip("link", "set", interface, "netns", name)
                for words in (
                    f"addr add {address}/24 dev {interface}",
                    f"link set {interface} up",
                    "link set lo up",
                ):
                    _ip("-n", name, *words.split())
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)}")
        yield TwoHosts(names, interfaces)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
