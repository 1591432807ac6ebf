"""Two hosts train one run: network namespaces with separate addresses, connected by a virtual cable.

Each namespace has its own interfaces and its own /etc/hosts, which maps the name of this machine to the address of the
namespace: JAX's CPU collectives find their peers by that name.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import uuid
from pathlib import Path

import pytest

from engine.config.text import to_text
from engine.run.directory import RunDirectory
from tests import runs

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts():
    """The names of two namespaces with a cable between them."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    mark = uuid.uuid4().hex[:6]
    names = [f"convoy-{mark}-{side}" for side in "ab"]
    with contextlib.ExitStack() as stack:
        try:
            for name, address in zip(names, ADDRESSES, strict=True):
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)
                folder = Path("/etc/netns") / name
                folder.mkdir(parents=True)
                stack.callback(shutil.rmtree, folder)
                (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n")
            ip("link", "add", f"cv{mark}a", "type", "veth", "peer", "name", f"cv{mark}b")
            for name, address, side in zip(names, ADDRESSES, "ab", strict=True):
                ip("link", "set", f"cv{mark}{side}", "netns", name)
                for words in (
                    f"addr add {address}/24 dev cv{mark}{side}",
                    f"link set cv{mark}{side} up",
                    "link set lo up",
                ):
                    ip("-n", name, *words.split())
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        yield names


def test_two_hosts_train_identically_to_one_host_with_two_devices(hosts, tmp_path):
    (tmp_path / "config").mkdir()
    RunDirectory(tmp_path / "config").write_config_text(to_text(runs.config(mesh__fsdp=2)))
    train = ("train", f"--config={tmp_path / 'config'}")
    processes = [
        subprocess.Popen(
            ["ip", "netns", "exec", host, *runs.command(*train), f"--workdir={tmp_path / 'run'}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=runs.environment(
                CONVOY_COORDINATOR=f"{ADDRESSES[0]}:8476", CONVOY_NUM_PROCESSES="2", CONVOY_PROCESS_ID=str(i)
            ),
        )
        for i, host in enumerate(hosts)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    alone = runs.convoy(*train, f"--workdir={tmp_path / 'alone'}", JAX_NUM_CPU_DEVICES="2")
    assert alone.returncode == 0, alone.stderr
    assert runs.rows(tmp_path / "run") == runs.rows(tmp_path / "alone")
