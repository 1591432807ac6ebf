"""Detection of the ten classes of nuScenes, and masks of vehicles and pedestrians from above, in six cameras.

convoy train --config=configs.nuscenes_cameras --workdir=runs/nuscenes_cameras
    intersection over union of vehicles 0.52 and of pedestrians 0.16, mean average precision 0.22 and nuScenes detection
    score 0.33 on the 40 training samples of the miniature; about two minutes of CPU time
convoy predict runs/nuscenes_cameras --evaluation=val --format=nuscenes --out=results.json

The miniature is simulated, and written to data/miniatures/nuscenes on the first start: docs/public-datasets.md. Images
are lifted and splatted; with `--config.task.view=deformable`, cells read them by deformable attention: 0.49, 0.01, 0.15
and 0.26 after as many steps, and four minutes of CPU time.
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.street.nuscenes_cameras.NuScenesCameras", width=24)
    samples = "convoy_zoo.models.street.nuscenes_cameras.samples"
    c.data = dict(target=samples, split="mini_train")
    c.train.total = "200 steps"
    c.train.global_batch_size = 4
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup = "30 steps"
    for split in ("train", "val"):
        c.evaluations[split] = dict(data=dict(target=samples, split=f"mini_{split}"), every=None)
    c.log.every = "25 steps"
    c.tiny = {"task.width": 8, "task.cells": [16, 16]}
    return c
