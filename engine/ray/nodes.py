"""Follows the nodes of a Ray cluster: which processes of a job are on which node, and which nodes are lost."""

import socket
import threading
import time
from types import ModuleType
from typing import Any

from engine.cluster.cluster_detection import address as parse_address
from engine.cluster.shutdown import RunThread
from engine.ray.connection import call

_POLL_S = 1.0  # between two reads of the states of all nodes
_CALL_S = 12.0  # for one read; a cluster whose head is gone does not answer
_PROBE_S = 5.0  # for a connection to the head
_NOTICE_S = 6.0  # until Ray has noticed that a node is lost, after an actor there has stopped answering


class Nodes:
    """Reads the states of all nodes in a thread, until `close`.

    Args:
        ray: the connected module.
    """

    def __init__(self, ray: ModuleType):
        self._ray = ray
        self._stopping = threading.Event()
        self._found: dict[str, dict[str, Any]] = {}  # id -> what Ray tells about a node
        self._places: dict[int, str] = {}  # index of a process -> id of its node
        self._head = ray.get_runtime_context().gcs_address
        self.head_lost = ""
        """A sentence once the head of the cluster accepts no connections; Ray then ends this process after 60 s."""
        self._read()
        otherwise = "A node that is lost is noticed by its missing answers only."
        RunThread(self._follow, "nodes", otherwise=otherwise).start()

    def place(self, index: int, node: str) -> None:
        """States on which node a process is."""
        self._places[index] = node

    def address(self, index: int) -> str:
        """Returns the address of the node of a process."""
        return self._found[self._places[index]]["NodeManagerAddress"]

    def text(self, index: int) -> str:
        """Names the node of a process: its host name, address and id."""
        node = self._places.get(index)
        if node is None:
            return "a node that is not known"
        found = self._found.get(node, {})
        host, address = found.get("NodeManagerHostname", "?"), found.get("NodeManagerAddress", "?")
        return f"node {host} ({address}, Ray's id {node})"

    def lost(self, index: int) -> str:
        """Returns a sentence about the lost node of a process; "" if it is alive."""
        node = self._places.get(index)
        if node is None or self._found.get(node, {"Alive": True})["Alive"]:
            return ""
        return f"{self.text(index)}, which ran process {index}, is lost."

    def wait_until_lost(self, index: int) -> str:
        """Returns `lost`, once Ray has had time to notice it."""
        end = time.monotonic() + _NOTICE_S
        while not (text := self.lost(index)) and time.monotonic() < end and not self._stopping.wait(_POLL_S / 4):
            pass
        return text

    def close(self) -> None:
        """Ends the thread."""
        self._stopping.set()

    def _read(self) -> None:
        found = call(self._ray.nodes, _CALL_S)
        self._found |= {node["NodeID"]: node for node in found}

    def _follow(self) -> None:
        while not self._stopping.wait(_POLL_S):
            try:
                self._read()
            except Exception:  # missing answers of the actors show what else is lost
                self.head_lost = self._probe_head()

    def _probe_head(self) -> str:
        try:
            socket.create_connection(parse_address("the head", self._head), _PROBE_S).close()
        except OSError as error:
            reason = error.strerror or error
            return f"the head of the Ray cluster at {self._head} does not answer ({reason})."
        return ""
