import os
import signal
import socket
import sys
import time

import pytest

from engine.base.errors import ConfigError
from engine.ray import connection
from engine.ray.connection import connect
from tests import runs
from tests.ray.clusters import cluster

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.filterwarnings("ignore:.*fork"),  # of JAX, if another test has imported it
]


def test_connection_finds_the_nodes_and_leaves_signals_alone():
    with cluster() as found:
        before = signal.getsignal(signal.SIGTERM)
        ray = connect(found.address)
        try:
            assert connect("another:1") is ray  # the connection of this process
            assert [node["Alive"] for node in ray.nodes()] == [True]
            assert signal.getsignal(signal.SIGTERM) is before
            received: list[int] = []
            signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
            ray.shutdown()
            connect(found.address)  # by this process, which now has a handler of its own
            os.kill(os.getpid(), signal.SIGTERM)
            assert received == [signal.SIGTERM]
            assert signal.alarm(0) == 0  # Ray's C++ code would abort this process
        finally:
            ray.shutdown()


def refusal(address: str | None) -> str:
    begin = time.monotonic()
    with pytest.raises(ConfigError) as raised:
        connect(address)
    assert time.monotonic() - begin < runs.limit(20)
    return str(raised.value)


def test_address_without_a_server_is_one_sentence_at_once(monkeypatch, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        expected = f"no Ray cluster answers at {address} (Connection refused). Start one with `ray start --head`"
        assert refusal(address).startswith(expected)
        monkeypatch.setenv(connection.ADDRESS, address)
        assert refusal(None).startswith(expected)
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
        monkeypatch.delenv(connection.ADDRESS)
        assert refusal(None).startswith("no Ray cluster answers on this machine (none was started). Start one with")
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray/ray_current_cluster").write_text(address)  # of a cluster that was killed
        assert refusal(None).startswith(expected)


def test_address_that_is_none_names_what_is_allowed():
    assert refusal("somewhere").startswith("--address = 'somewhere': allowed is HOST:PORT")


def test_server_that_is_no_ray_is_refused_in_time(monkeypatch):
    monkeypatch.setattr(connection, "_INIT_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = refusal(f"127.0.0.1:{server.getsockname()[1]}")
    assert "it accepts connections, but did not answer as Ray within 2 s" in text


def test_missing_ray_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "Ray is not installed: pip install" in refusal(None)
