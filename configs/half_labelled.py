"""Vehicles and lane lines in the bird's-eye view, from two datasets that each have the labels of one of them.

tools/bazel run //configs:half_labelled     intersection over union of vehicles 0.113 (0.110 to 0.116) of three seeds on
                                            200 held-out scenes, of lane lines 0.029 (0.001 to 0.080)
python -m benchmarks.driving_data --only=joint
                                            each dataset alone: 0.125 and 0.113 in as many steps

The scenes are simulated. The runs are short: the lane lines have hardly begun to be learnt.
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
