"""The states of nodes, as Ray lists them. launch_test.py loses real ones."""

import socket
import time
from types import ModuleType, SimpleNamespace

from engine.ray.nodes import Nodes


class Ray(ModuleType):
    def __init__(self, head: str = "127.0.0.1:1"):
        super().__init__("ray")
        self.alive, self.head = True, head

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(gcs_address=self.head)

    def nodes(self) -> list[dict]:
        if not self.head:
            raise ConnectionError
        return [{"NodeID": "abc", "Alive": self.alive, "NodeManagerHostname": "gpu7", "NodeManagerAddress": "10.0.0.7"}]


def test_lost_node_is_named_with_its_host_address_and_id():
    ray = Ray()
    nodes = Nodes(ray)
    nodes.place(1, "abc")
    assert nodes.address(1) == "10.0.0.7" and nodes.lost(1) == nodes.lost(0) == ""
    assert nodes.text(0) == "a node that is not known"
    ray.alive = False
    assert nodes.wait_until_lost(1) == "node gpu7 (10.0.0.7, Ray's id abc), which ran process 1, is lost."
    nodes.close()


def test_head_is_lost_once_it_accepts_no_connections():
    with socket.create_server(("127.0.0.1", 0)) as server:
        ray = Ray(f"127.0.0.1:{server.getsockname()[1]}")
        nodes, address = Nodes(ray), ray.head
        ray.head = ""  # it answers no longer, but still listens: it may be busy
        time.sleep(1.5)
        assert nodes.head_lost == ""
    end = time.monotonic() + 60
    while not nodes.head_lost and time.monotonic() < end:
        time.sleep(0.02)
    assert nodes.head_lost == f"the head of the Ray cluster at {address} does not answer (Connection refused)."
    nodes.close()
