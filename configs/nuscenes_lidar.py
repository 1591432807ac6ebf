"""Detection of the ten classes of nuScenes in lidar sweeps: centres in pillars, or in sparse voxels.

convoy train --config=configs.nuscenes_lidar --workdir=runs/nuscenes_lidar
    mean average precision 0.956 and nuScenes detection score 0.818 on the 40 training samples of the miniature, equal
    to those of the nuscenes-devkit; on its 20 other samples 0.063 and 0.183; about 7 minutes of CPU time
convoy predict runs/nuscenes_lidar --evaluation=val --format=nuscenes --out=results.json

The miniature is simulated, and written to data/miniatures/nuscenes on the first start. `--config.task.voxels=16` takes
sparse voxels. docs/public-datasets.md says how to train on the real data.
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.street.nuscenes.NuScenesDetection", width=16, cells=[96, 96], capacity=8000)
    sweeps = dict(target="convoy_zoo.models.street.nuscenes.sweeps", sweeps=2, points=32_000, objects=80)
    c.data = dict(**sweeps, split="mini_train")
    c.train.total = "600 steps"
    c.train.global_batch_size = 4
    c.optimizer.learning_rate = 4e-3
    c.optimizer.warmup = "50 steps"
    for split in ("train", "val"):
        c.evaluations[split] = dict(data=dict(**sweeps, split=f"mini_{split}"), every="300 steps")
    c.log.every = "25 steps"
    c.tiny = {"task.width": 4, "task.cells": [16, 16], "task.predictions": 10, "train.global_batch_size": 2}
    return c
