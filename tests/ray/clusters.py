"""Real Ray clusters of several nodes on this machine."""

import contextlib
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def cluster(**head: Any) -> Iterator[Any]:
    """Yields a `ray.cluster_utils.Cluster` with a head node, which has one CPU unless `head` states another number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of Ray: log files of its daemons stay open
        from ray.cluster_utils import Cluster

        folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the paths of Ray's sockets must be short
        found, handler = None, signal.getsignal(signal.SIGTERM)
        try:
            found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "temp_dir": folder, **head})
            yield found
        finally:
            if found is not None:
                found.shutdown()
            signal.signal(signal.SIGTERM, handler)  # a node has set its own
            shutil.rmtree(folder, ignore_errors=True)
