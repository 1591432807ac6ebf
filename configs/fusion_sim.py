"""Boxes, vehicles and lane lines from six simulated cameras and a lidar, starting with a trained model of each.

tools/bazel run //configs:lidar_sim && tools/bazel run //configs:bev_sim
tools/bazel run //configs:fusion_sim

The quality of the trained model is not measured yet.
"""

from engine.config import defaults

LIDAR, CAMERAS = "runs/lidar_sim", "runs/bev_sim"


def get_config():
    c = defaults()
    c.task = dict(target="models.bev_fusion.Fusion", lidar_width=32, camera_width=64)
    c.data = dict(target="models.bev_fusion.scenes", count=3000)
    c.train.total = "1 epoch"
    c.train.global_batch_size = 2
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup = "100 steps"
    c.init.sources.lidar = dict(checkpoint=LIDAR, paths={"lidar": ""})
    c.init.sources.cameras = dict(checkpoint=CAMERAS, paths={"bev": ""})
    heldout = dict(target="models.bev_fusion.scenes", count=100, seed=1_000_000)
    c.evaluations.heldout = dict(data=heldout, every="500 steps", at_start=True)
    c.log.every = "50 steps"
    c.tiny = {"data.count": 4, "evaluations.heldout.data.count": 4}
    return c
