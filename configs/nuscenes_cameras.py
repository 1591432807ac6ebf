"""Detection of the ten classes of nuScenes, and masks of vehicles from above, in six cameras: lift and splat.

convoy train --config=configs.nuscenes_cameras --workdir=runs/nuscenes_cameras
convoy predict runs/nuscenes_cameras --evaluation=val --format=nuscenes --out=results.json
convoy train --config=configs.nuscenes_cameras:memory --workdir=runs/nuscenes_cameras_memory
                                          the same with a memory, on windows of two samples

The data are a simulated miniature of six scenes, which is made if it is absent: docs/public-datasets.md.
"""

from engine.config import defaults


def get_config(memory: str = ""):
    c = defaults()
    c.task = dict(target="convoy_zoo.models.street.nuscenes_cameras.NuScenesCameras", width=24)
    data = dict(target="convoy_zoo.models.street.nuscenes_cameras.samples")
    c.train.total = "200 steps"
    c.train.global_batch_size = 4
    if memory:
        c.task.update(memory=16, rows=2)
        data = dict(target="convoy_zoo.models.street.nuscenes_cameras.drives", length=2)
        c.train.global_batch_size = 2
    c.data = dict(**data, split="mini_train")
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup = "30 steps"
    for split in ("train", "val"):
        c.evaluations[split] = dict(data=dict(**data, split=f"mini_{split}"), every=None)
    c.log.every = "25 steps"
    c.tiny = {"task.width": 8, "task.cells": [16, 16]}
    return c
