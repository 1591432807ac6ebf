"""Simulation of traffic by motion tokens, trained and tested on networks of roads that SUMO simulates.

tools/bazel run //configs:motion_tokens     6 min of CPU time; 200 test scenes, mean of three seeds: 14.4 % of
                                            vehicles collide (constant velocity 27.4 %) and 2.4 % leave
                                            the road (10.6 %); minADE of 8 roll-outs 1.28 m (3.64 m)

`pip install -e '.[sim]'` brings SUMO for `convoy train`. The first run also simulates the scenes, in about
two minutes of one core (an estimate).
"""

from engine.config import defaults

FOLDER = "data/traffic"


def get_config(folder=FOLDER):
    c = defaults()
    c.task = dict(target="convoy_zoo.models.traffic.motion_tokens.NextToken", folder=folder, width=64, depth=2)
    c.data = scenes("train", folder)
    c.train.total = "1 epoch"
    c.train.global_batch_size = 8
    c.train.ema_decay = 0.99
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup = "50 steps"
    c.evaluations.validation = dict(data=scenes("validation", folder, every=4), every="300 steps")
    c.evaluations.test = dict(data=scenes("test", folder, every=4), every=None)
    c.checkpoint.best = "validation/loss"
    c.checkpoint.best_mode = "min"
    c.log.every = "20 steps"
    return c


def scenes(split, folder, every=1):
    return dict(target="convoy_zoo.models.traffic.token_scenes.TokenScenes", split=split, folder=folder, every=every)
