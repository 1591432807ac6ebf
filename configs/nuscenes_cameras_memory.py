"""The detection of `configs/nuscenes_cameras.py` with a memory, on windows of two samples of a drive.

convoy train --config=configs.nuscenes_cameras_memory --workdir=runs/nuscenes_cameras_memory
    intersection over union of vehicles 0.43 and nuScenes detection score 0.26 on the 40 training samples of the
    miniature; about two and a half minutes of CPU time

After as many steps of as many samples, `nuscenes_cameras` has 0.52 and 0.33; its batches are more varied.
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
    # All four drives: with fewer windows a row would be idle, and normalisation over the batch would include it.
    c.tiny = {"task.width": 8, "task.cells": [16, 16], "data.limit": 20}
    return c
