"""Detection of the ten classes of nuScenes, and masks of vehicles from above, in six cameras: lift and splat.

convoy train --config=configs.nuscenes_cameras --workdir=runs/nuscenes_cameras
convoy predict runs/nuscenes_cameras --evaluation=val --format=nuscenes --out=results.json

The data are a simulated miniature of six scenes, which is made if it is absent: docs/public-datasets.md. After 200
steps, the intersection over union of vehicles is 0.47 on the 40 samples of training, and the detection score 0.37.
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
