"""A set model on generated scenes with 3 to 300 agents, in batches of similar length.

tools/bazel run //configs:scenes     1 min 47 s on 2 busy CPU cores, of which 50 s compiling five lengths with an empty
                                     compilation cache; held-out distance 0.024
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.scenes.NextStep", width=32, depth=2, heads=2)
    c.data = bucketed(count=4000)
    c.train.total = "10 epochs"
    c.train.global_batch_size = 32
    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup = "50 steps"
    c.evaluations.heldout = dict(data=bucketed(count=400, seed=1), every="1 epoch")
    c.checkpoint.every = "200 steps"
    c.checkpoint.best = "heldout/distance"
    c.checkpoint.best_mode = "min"
    c.tiny = {
        "train.global_batch_size": 4,
        "data.source.count": 16,
        "data.lengths": [300],
        "evaluations.heldout.data.source.count": 8,
        "evaluations.heldout.data.lengths": [300],
    }
    return c


def bucketed(**scenes):
    source = dict(target="convoy_zoo.models.scenes.Scenes", **scenes)
    return dict(target="engine.Bucketed", source=source, lengths=[10, 20, 40, 100, 300], fields=["agents", "step"])
