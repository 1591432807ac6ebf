"""Detection in drives of simulated lidar sweeps, with a memory from sweep to sweep.

tools/bazel run //configs:drives_sim        mean average precision 0.173 (0.161 to 0.184) of three seeds on 20 held-out
                                            drives, nuScenes detection score 0.215
python -m benchmarks.driving_data --only=memory
                                            the same without memory: 0.171 and 0.227, no difference beyond the seeds

The scenes are simulated. One epoch is too short for a memory to help: both models find cars only.
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
