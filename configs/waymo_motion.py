"""Motion forecasting on the Waymo Open Motion Dataset: six futures of 8 s of several tracks, from 1 s and the map.

convoy train --config=configs/waymo_motion.py          a simulated miniature of 200 scenarios, written first

2 min of CPU time; on 40 other scenarios, mAP 0.49, minADE 1.15 m and miss rate 0.32.
docs/public-datasets.md says how to train on the real dataset.
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.traffic.motion.MotionForecast", benchmark="waymo", steps=80, width=64)
    data = dict(target="convoy_zoo.models.traffic.motion_scenes.WaymoScenes")
    c.data = dict(data, split="training", targets=4)
    c.train.total = "12 epochs"
    c.train.global_batch_size = 8
    c.train.ema_decay = 0.99
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup = "30 steps"
    c.evaluations.validation = dict(data=dict(data, split="validation", targets=4), every="4 epochs")
    c.checkpoint.every = "4 epochs"
    c.checkpoint.best = "validation/waymo/mean_ap"
    c.checkpoint.best_mode = "max"
    c.log.every = "25 steps"
    c.tiny = {"task.width": 16, "train.global_batch_size": 2}
    return c
