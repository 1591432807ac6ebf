"""Simulated traffic (SUMO): six futures of 6 s of an agent, from 2 s and the lanes and lights around it.

tools/bazel run //configs:forecast_sim               simulates the traffic first: about two minutes (estimated)
convoy train --config=configs/forecast_sim.py        likewise, with pip install -e '.[sim]'

2 min 13 s of CPU time. On networks that it was not trained on, of agents that move: minADE 1.14 m of the best of 6
futures, the mean of three seeds (1.10 to 1.21 m), 0.34 of constant velocity's 3.39 m. Its most likely future has
2.67 m.
"""

from engine.config import defaults


def get_config(folder="data/traffic"):
    c = defaults()
    c.task = dict(target="convoy_zoo.models.traffic.wayformer.TrafficForecast", modes=6, width=64)
    c.data = dict(target="convoy_zoo.models.traffic.targets.Targets", split="train", folder=folder, standing=0.2)
    c.train.total = "3 epochs"
    c.train.global_batch_size = 32
    c.train.ema_decay = 0.99
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup = "100 steps"
    validation = dict(target="convoy_zoo.models.traffic.targets.Targets", split="validation", folder=folder)
    c.evaluations.validation = dict(data=validation, every="1 epoch")
    c.evaluations.test = dict(
        data=dict(validation, split="test"),
        every=None,
        slices=dict(
            group=dict(target="convoy_zoo.models.traffic.targets.in_group"),
            type=dict(target="convoy_zoo.models.traffic.targets.of_type"),
        ),
        score="best/min_ade",
        tags=dict(key="id", scene="scene"),
    )
    c.checkpoint.every = "1 epoch"
    c.checkpoint.best = "validation/best/min_ade"
    c.checkpoint.best_mode = "min"
    c.log.every = "50 steps"
    c.tiny = {"task.width": 16, "train.global_batch_size": 2}
    return c
