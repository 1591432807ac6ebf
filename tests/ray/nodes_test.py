"""The states of nodes, as Ray lists them. launch_test.py loses real ones."""

import threading
from types import ModuleType

from engine.ray.nodes import Nodes


class Ray(ModuleType):
    def __init__(self):
        super().__init__("ray")
        self.alive, self.read = True, threading.Event()

    def nodes(self) -> list[dict]:
        self.read.set()
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
