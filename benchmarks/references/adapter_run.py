"""The config of a run that trains adapters of a Qwen 3 over 8 simulated devices; `adapters.py` kills and exports it.

python -m benchmarks.references --only=adapters --items=qwen-run
"""

from benchmarks.references.killed_run import HOOK
from convoy_zoo.configs import finetune_language

STEPS, KILLS = 8, (3, 6)
"""Length of the run, and the steps after which it is killed."""


def get_config():
    """Returns `configs.finetune_language` with adapters, on data=2 x fsdp=2 x tensor=2."""
    c = finetune_language.get_config()
    match = "(query|key|value|out|gate|up|down)/kernel$"
    c.task = dict(target="engine.adapters.adapted", task=c.task, match=match, rank=4, alpha=8, dropout=0.1)
    c.data.length, c.data.limit = 32, 64
    c.evaluations = {}
    c.checkpoint.best = None
    c.checkpoint.every = "2 steps"
    c.mesh.cpu_devices, c.mesh.data, c.mesh.fsdp, c.mesh.tensor = 8, 2, 2, 2
    c.optimizer.warmup = "2 steps"
    c.train.total = f"{STEPS} steps"
    c.log.every, c.log.examples, c.log.progress = "1 step", True, "none"
    c.hooks.kill = HOOK
    return c
