"""Detection of cars, pedestrians and cyclists of KITTI in lidar sweeps: centres in pillars.

convoy train --config=configs.kitti_lidar --workdir=runs/kitti_lidar
convoy predict runs/kitti_lidar --evaluation=val --format=kitti --out=results.zip

The space is that of the miniature. Remove `lower`, `upper`, `cells` and `reach` for that of KITTI: 70.4 m x 80 m.
"""

from engine.config import defaults


def get_config():
    c = defaults()
    space = dict(lower=[0.0, -16.0, -3.0], upper=[32.0, 16.0, 1.0], cells=[80, 80])
    c.task = dict(target="convoy_zoo.models.street.kitti.KittiDetection", width=16, capacity=4000, **space)
    frames = dict(target="convoy_zoo.models.street.kitti.frames", reach=32.0, points=12_000)
    c.data = dict(**frames, split="train")
    c.train.total = "500 steps"
    c.train.global_batch_size = 4
    c.optimizer.learning_rate = 4e-3
    c.optimizer.warmup = "50 steps"
    for split in ("train", "val"):
        c.evaluations[split] = dict(data=dict(**frames, split=split), every="500 steps")
    c.log.every = "25 steps"
    return c
