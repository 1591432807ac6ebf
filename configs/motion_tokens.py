"""Simulation of traffic by motion tokens, trained and tested on networks of roads that SUMO simulates.

tools/bazel run //configs:motion_tokens     trains, and makes 8 roll-outs of each test scene

The first run also simulates the scenes, about two minutes. The quality is not measured yet.
"""

from engine.config import defaults

FOLDER = "data/traffic"


def get_config(folder=FOLDER):
    c = defaults()
    c.task = dict(target="models.motion_tokens.NextToken", folder=folder, width=64, depth=2)
    c.data = scenes("train", folder)
    c.train.total = "2 epochs"
    c.train.global_batch_size = 8
    c.train.ema_decay = 0.99
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup = "50 steps"
    c.evaluations.validation = dict(data=scenes("validation", folder, every=4), every="300 steps")
    c.evaluations.test = dict(data=scenes("test", folder), every=None)
    c.checkpoint.best = "validation/loss"
    c.checkpoint.best_mode = "min"
    c.log.every = "20 steps"
    return c


def scenes(split, folder, every=1):
    return dict(target="models.token_scenes.TokenScenes", split=split, folder=folder, every=every)
