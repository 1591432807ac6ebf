"""Detection of the ten classes of nuScenes in lidar sweeps: centres in pillars, or in sparse voxels.

convoy train --config=configs.nuscenes_lidar --workdir=runs/nuscenes_lidar
    pillars: mean average precision 0.835 and nuScenes detection score 0.722 on the 40 training samples of the
    miniature; on its 20 other samples 0.074 and 0.144; about 3 minutes of CPU time
convoy train --config=configs.nuscenes_lidar --config.task.voxels=8 --workdir=runs/nuscenes_voxels
    sparse voxels in 8 layers: 0.846 and 0.723; on the other samples 0.062 and 0.115; about 8 minutes of CPU time
convoy predict runs/nuscenes_lidar --evaluation=val --format=nuscenes --out=results.json

The miniature is simulated, and written to data/miniatures/nuscenes on the first start. docs/public-datasets.md says how
to train on the real data.
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(
        target="convoy_zoo.models.street.nuscenes.NuScenesDetection",
        width=16,
        cells=[96, 96],
        capacity=12_000,  # of pillars, or of voxels at each level: enough for 8 layers of them
        velocity_weight=1.0,  # 0.2 for each m/s, as in CenterPoint
    )
    sweeps = dict(target="convoy_zoo.models.street.nuscenes.sweeps", sweeps=2, points=32_000, objects=80)
    c.data = dict(**sweeps, split="mini_train")
    c.train.total = "300 steps"
    c.train.global_batch_size = 4
    c.optimizer.learning_rate = 4e-3
    c.optimizer.warmup = "50 steps"
    for split in ("train", "val"):
        c.evaluations[split] = dict(data=dict(**sweeps, split=f"mini_{split}"), every="300 steps")
    c.log.every = "25 steps"
    c.tiny = {"task.width": 4, "task.cells": [16, 16], "task.predictions": 10, "train.global_batch_size": 2}
    return c
