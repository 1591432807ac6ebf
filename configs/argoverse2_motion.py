"""Motion forecasting on Argoverse 2: six futures of 6 s of the focal track, from 5 s, the agents around it and the map.

convoy train --config=configs/argoverse2_motion.py          a simulated miniature of 200 scenarios, written first

2 min of CPU time; on 40 other scenarios, brier-minFDE 3.8 m and minFDE 3.3 m of the best of 6 futures of the focal
track, where constant velocity has 9.9 m. docs/public-datasets.md says how to train on the real dataset.
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.traffic.motion.MotionForecast", benchmark="argoverse2", steps=60, width=64)
    data = dict(target="convoy_zoo.models.traffic.motion_scenes.Argoverse2Scenes")
    c.data = dict(data, split="train", targets=4)
    c.train.total = "12 epochs"
    c.train.global_batch_size = 8
    c.train.ema_decay = 0.99
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup = "30 steps"
    c.evaluations.val = dict(data=dict(data, split="val", targets=4), every="4 epochs")
    c.checkpoint.every = "4 epochs"
    c.checkpoint.best = "val/focal/brier_min_fde"
    c.checkpoint.best_mode = "min"
    c.log.every = "25 steps"
    c.tiny = {"task.width": 16, "train.global_batch_size": 2}
    return c
