"""Detection in drives of simulated lidar sweeps, with a memory from sweep to sweep.

The scenes are simulated.
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.street.memory.DriveDetection", width=16, memory=16, rows=2)
    c.data = dict(target="convoy_zoo.models.street.drives.windows", count=150)
    c.train.total = "1 epoch"
    c.train.global_batch_size = 2
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup = "30 steps"
    heldout = dict(target="convoy_zoo.models.street.drives.windows", count=20, seed=1_000_000, length=1)
    c.evaluations.heldout = dict(data=heldout, every=None)
    c.log.every = "20 steps"
    c.tiny = {"data.count": 2, "evaluations.heldout.data.count": 1}
    return c
