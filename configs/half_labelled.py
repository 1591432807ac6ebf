"""Vehicles and lane lines in the bird's-eye view, from two datasets that each have the labels of one of them.

The scenes are simulated.
"""

from engine.config import defaults

CLASSES = {"vehicle": 0, "lane": 3_000_000}  # dataset -> seed of its scenes


def get_config():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.street.half_labelled.TwoMasks", width=32)
    sources = {name: scenes(name, count=1500, seed=seed) for name, seed in CLASSES.items()}
    c.data = dict(target="engine.Joint", sources=sources)
    c.train.total = "750 steps"
    c.train.global_batch_size = 2
    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup = "100 steps"
    for name in CLASSES:
        heldout = dict(target="engine.Joint", sources={name: scenes(name, count=200, seed=1_000_000)})
        c.evaluations[f"heldout_{name}"] = dict(data=heldout, every=None)
    c.log.every = "50 steps"
    counts = {f"evaluations.heldout_{name}.data.sources.{name}.count": 2 for name in CLASSES}
    c.tiny = {**{f"data.sources.{name}.count": 4 for name in CLASSES}, **counts}
    return c


def scenes(kind, count, seed):
    return dict(target="convoy_zoo.models.street.half_labelled.Labelled", kind=kind, count=count, seed=seed)
