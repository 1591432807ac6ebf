"""Real Ray clusters of several nodes on this machine."""

import contextlib
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

QUIET = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
"""Leaves out programs of Ray that serve no test: a web page, its autoscaler, and the output of workers."""


@contextlib.contextmanager
def cluster(**head: Any) -> Iterator[Any]:
    """Yields a `ray.cluster_utils.Cluster` with a head node, which has one CPU unless `head` states another number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray: log files of its daemons stay open; of JAX: forks
        from ray.cluster_utils import Cluster

        folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the paths of Ray's sockets must be short
        found, handler = None, signal.getsignal(signal.SIGTERM)
        try:
            found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "temp_dir": folder, **QUIET, **head})
            yield found
        finally:
            if found is not None:
                found.shutdown()
            signal.signal(signal.SIGTERM, handler)  # a node has set its own
            shutil.rmtree(folder, ignore_errors=True)


class Nodes:
    """A cluster, and its nodes in addition to the head, each with one CPU and one `slot`."""

    def __init__(self, found: Any):
        self.cluster, self.address, self.others = found, found.address, []

    def add(self, count: int) -> None:
        """Adds nodes until the cluster has this number of them, without the head."""
        while len(self.others) < count:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # JAX, where it has started, warns of forks
                self.others.append(self.cluster.add_node(num_cpus=1, resources={"slot": 1}))

    def kill(self) -> str:
        """Kills a node with SIGKILL, and returns its id."""
        node = self.others.pop()
        self.cluster.remove_node(node, allow_graceful=False)
        return node.node_id
