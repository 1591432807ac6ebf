"""Objects of buckets without a mount: retries after broken connections, and the sentences of errors."""

import contextlib
import socket
import subprocess
import sys
import threading

import pytest

from engine.base.errors import DataError
from engine.cluster.exit_status import ExitStatus
from engine.storage import object_store
from engine.storage.mounts import address_of_copy, register_copy, shown
from engine.storage.object_store import Bucket, explain, is_selected
from tests import runs

pytestmark = pytest.mark.multiprocess

QUICK = {"max_retries": 3, "initial_delay": "10ms", "max_delay": "10ms"}


@contextlib.contextmanager
def cut(server: str, connections: int):
    """Yields the address of a proxy of a server that cuts the first connections in the middle of the answer."""
    host, port = server.removeprefix("http://").split(":")
    left = [connections]

    def answer(client: socket.socket):
        with client, socket.create_connection((host, int(port))) as upstream:
            request = client.recv(1 << 16)
            upstream.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            with upstream.makefile("rb") as file:
                found = file.read()
            left[0] -= 1
            client.sendall(found if left[0] < 0 else found[: len(found) // 2] if left[0] else found[:-3])

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with contextlib.suppress(OSError):  # closed
                while True:
                    client, _ = listening.accept()
                    with contextlib.suppress(OSError):
                        answer(client)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", left
        listening.shutdown(socket.SHUT_RDWR)


def test_request_is_repeated_after_a_broken_connection(bucket, bucket_server, monkeypatch):
    bucket.write("a", b"content").result()
    monkeypatch.setattr(object_store, "RETRIES", QUICK)
    with cut(bucket_server, 2) as (address, left):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        assert Bucket("s3", "data", DataError).read("a")[0] == b"content"
    assert left[0] < 0


def test_unreachable_server_is_reported_after_the_retries(bucket, monkeypatch):
    monkeypatch.setattr(object_store, "RETRIES", QUICK)
    text = r"s3://data/a/b: cannot be read \(ABORTED: All 3 retry.*AWS_ENDPOINT_URL and the"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # refuses connections, since it does not listen, and no program takes its port
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(DataError, match=text) as error:
            Bucket("s3", "data", DataError).list("a/b")
    assert error.value.exit_code == ExitStatus.RETRY


def test_request_without_an_answer_is_reported(bucket):
    program = f"""
import engine.storage.object_store as store
from engine.base.errors import DataError
store.RETRIES = {dict(QUICK, max_retries=1)}
try:
    store.Bucket("s3", "data", DataError).read("a")
except DataError as error:
    print(error.exit_code, error)
"""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system accepts its connections
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        limit = {"TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "1"}
        environment = runs.environment(AWS_ENDPOINT_URL=address, **limit)
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300
        )
    assert done.stdout.startswith("42 s3://data/a: cannot be read (ABORTED: All 1 retry"), done.stderr


def test_objects_are_written_listed_and_deleted(bucket):
    store = Bucket("s3", "data", DataError)
    generation = store.write("x/a", b"1")
    store.write("x/b", b"2")
    assert sorted(store.list("x/")) == ["x/a", "x/b"]
    assert store.read("x/a") == (b"1", generation) and store.generation("x/a") == generation
    assert store.write("x/a", b"3") != generation
    store.delete("x/b")
    store.delete("x/b")
    assert store.read("x/b")[0] is None and store.list("") == ["x/a"]
    with pytest.raises(
        DataError, match=r"s3://none/x: cannot be written \(NOT_FOUND: NoSuchBucket.*its name, and AWS_"
    ):
        Bucket("s3", "none", DataError).write("x", b"")


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("INTERNAL: Failed to get credentials from provider", "Set AWS_ACCESS_KEY_ID"),
        ("PERMISSION_DENIED: AccessDenied [http_response_code='403']", "Set AWS_ACCESS_KEY_ID"),
        ("INVALID_ARGUMENT: AuthorizationHeaderMalformed: the region 'us-east-1' is wrong", "Set AWS_REGION"),
        ("INTERNAL: anything else [more='x']", "Check that the bucket exists and that its keys are set. Set AWS_"),
    ],
)
def test_error_says_what_to_do(text, advice):
    found = explain("s3://b/x", ValueError(text))
    assert found.startswith(f"s3://b/x: cannot be read ({text.partition(' [')[0]}). {advice}")
    assert "AWS" not in explain("gs://b/x", ValueError("PERMISSION_DENIED: no"))


def test_missing_keys_are_reported(bucket, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError, match=r"s3://data: cannot be read \(.*Set AWS_ACCESS_KEY_ID and AWS_SECRET"):
        Bucket("s3", "data", DataError).list("")


def test_the_variable_selects_addresses_only(monkeypatch, tmp_path):
    monkeypatch.setenv(object_store.SWITCH, str(tmp_path))
    assert is_selected("s3://data/x.rec") and is_selected("gs://data/x*") and not is_selected("/data/x.rec")
    monkeypatch.delenv(object_store.SWITCH)
    assert not is_selected("s3://data/x.rec")


def test_copies_are_shown_with_their_address(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.storage.mounts._copies", {})
    register_copy(tmp_path, "s3://data/team")
    assert shown(f"{tmp_path}/run: damaged") == "s3://data/team/run: damaged"
    assert address_of_copy(tmp_path / "run" / "state") == "s3://data/team/run/state"
    assert address_of_copy(tmp_path.parent) is None
