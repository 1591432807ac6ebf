"""An S3 server for tests: that of moto, in a separate process."""

import contextlib
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

# The system chooses the port when the server binds it, so that no other program can take it before.
PROGRAM = """
import sys
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print("http://{}:{}".format(*server.get_host_and_port()), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def s3_server(bucket: str) -> Iterator[str]:
    """Starts a server with an empty bucket; yields its address."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            without_proxy.open(urllib.request.Request(f"{address}/{bucket}", method="PUT"), timeout=180).close()
            yield address
        finally:
            server.kill()
