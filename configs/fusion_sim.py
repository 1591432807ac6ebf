"""Boxes, vehicles and lane lines from six simulated cameras and a lidar, starting with a trained model of each.

tools/bazel run //configs:lidar_crossings && tools/bazel run //configs:bev_sim
tools/bazel run //configs:fusion_sim     8 minutes of CPU time; on 200 held-out scenes, mean of three seeds: mean
                                         average precision 0.661 (lidar alone 0.613), intersection over union 0.662
                                         for vehicles (cameras alone 0.298) and 0.459 for lane lines (0.385)

The scenes are simulated, and neither single model was trained on those of the fusion.
"""

from engine.config import defaults

LIDAR, CAMERAS = "runs/lidar_crossings", "runs/bev_sim"


def get_config():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.street.fusion.Fusion", lidar_width=32, camera_width=64)
    c.data = dict(target="convoy_zoo.models.street.fusion.scenes", count=2400, seed=4_000_000)
    c.train.total = "1 epoch"
    c.train.global_batch_size = 2
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup = "100 steps"
    c.init.sources.lidar = dict(checkpoint=LIDAR, paths={"lidar": ""})
    c.init.sources.cameras = dict(checkpoint=CAMERAS, paths={"bev": ""})
    validation = dict(target="convoy_zoo.models.street.fusion.scenes", count=60, seed=2_000_000)
    c.evaluations.validation = dict(data=validation, every="600 steps", at_start=True)
    heldout = dict(target="convoy_zoo.models.street.fusion.scenes", count=200, seed=1_000_000)
    c.evaluations.heldout = dict(data=heldout, every=None)
    c.log.every = "50 steps"
    counts = {f"evaluations.{name}.data.count": 4 for name in ("validation", "heldout")}
    c.tiny = {"data.count": 4, **counts}
    return c
