"""A connection whose end is hidden. peer_failure_test.py kills the coordinator of real processes."""

import socket
import sys

import pytest

from engine.cluster import coordinator_connection

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a socket filter of Linux")


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["IPv4", "IPv6"])
def pair(request):
    """A client and the server's end of its connection."""
    family, address = request.param
    try:
        listener = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener, socket.create_connection(listener.getsockname()[:2]) as client:
        server, _ = listener.accept()
        client.settimeout(0.2)
        with server:
            yield client, server


def reset(server):
    """Closes a connection by a packet with the flag RST."""
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    server.close()


def is_filter_allowed() -> bool:
    """Whether the kernel accepts a socket filter here; some refuse it to users without privileges."""
    with socket.socket() as connection:
        try:
            coordinator_connection.attach_filter(connection)
        except PermissionError:
            return False
    return True


@pytest.mark.skipif(sys.platform.startswith("linux") and not is_filter_allowed(), reason="the kernel refuses filters")
@pytest.mark.parametrize("end", [socket.socket.close, reset])
def test_hidden_connection_transfers_data_and_shows_no_end(pair, end):
    client, server = pair
    coordinator_connection.hide_close(server.getsockname()[1])
    server.sendall(b"answer")
    assert client.recv(64) == b"answer"
    end(server)
    with pytest.raises(TimeoutError):
        client.recv(64)
    client.sendall(b"request")
    with pytest.raises(TimeoutError):
        client.recv(64)


def test_connections_to_other_ports_are_not_changed(pair):
    client, server = pair
    coordinator_connection.hide_close(server.getsockname()[1] ^ 1)
    server.close()
    assert client.recv(64) == b""
