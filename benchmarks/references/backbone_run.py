"""The config of a run that starts with a ResNet-18 of torchvision, first frozen and then trained.

`backbones.py` kills it in both parts: python -m benchmarks.references --only=backbones --items=camera-run
"""

from benchmarks.references.killed_run import HOOK
from convoy_zoo.configs import camera_sim

STEPS, FROZEN, KILLS = 8, 4, (3, 6)
"""Length of the run, the steps in which the backbone is frozen, and the steps after which the run is killed."""


def get_config():
    """Returns `configs.camera_sim` with the backbone, on two simulated devices."""
    c = camera_sim.get_config()
    c.task.backbone = "resnet18"
    c.init.checkpoint = "hf:model.safetensors"
    c.init.paths = {"backbone/net": "", "backbone": None, "head": None}
    c.optimizer.groups.backbone = dict(match="^backbone/net/", frozen_until=f"{FROZEN} steps", learning_rate=1e-3)
    c.data.count = 16
    c.evaluations = {}
    c.checkpoint.every = "2 steps"
    c.mesh.cpu_devices = c.mesh.data = 2
    c.optimizer.warmup = "2 steps"
    c.train.total = f"{STEPS} steps"
    c.log.every, c.log.examples, c.log.progress = "1 step", True, "none"
    c.hooks.kill = HOOK
    return c
