"""The detection of `configs/nuscenes_cameras.py` with a memory, on windows of two samples of a drive.

convoy train --config=configs.nuscenes_cameras_memory --workdir=runs/nuscenes_cameras_memory
"""

from engine.config import defaults


def get_config():
    c = defaults()
    task = "convoy_zoo.models.street.nuscenes_cameras.NuScenesCameras"
    c.task = dict(target=task, width=24, memory=16, rows=2)
    drives = "convoy_zoo.models.street.nuscenes_cameras.drives"
    c.data = dict(target=drives, split="mini_train", length=2)
    c.train.total = "200 steps"
    c.train.global_batch_size = 2
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup = "30 steps"
    for split in ("train", "val"):
        c.evaluations[split] = dict(data=dict(target=drives, split=f"mini_{split}", length=1), every=None)
    c.log.every = "25 steps"
    c.tiny = {"task.width": 8, "task.cells": [16, 16]}
    return c
