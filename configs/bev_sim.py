"""Vehicles and lane lines in the bird's-eye view from six simulated cameras: lift and splat.

tools/bazel run //configs:bev_sim        trains, and prints the intersection over union on held-out scenes
python -m models.camera_prior            the mean mask of the training scenes: 0.069 for vehicles, 0.114 for lane lines

The scenes are simulated. The quality of the trained model is not measured yet.
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="models.bev.Bev", width=64)
    c.data = dict(target="models.camera_scenes.CameraScenes", count=6000)
    c.train.total = "1 epoch"
    c.train.global_batch_size = 2
    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup = "100 steps"
    heldout = dict(target="models.camera_scenes.CameraScenes", count=200, seed=1_000_000)
    c.evaluations.heldout = dict(data=heldout, every="1000 steps")
    c.checkpoint.best = "heldout/iou/vehicle"
    c.log.every = "50 steps"
    c.tiny = {"data.count": 4, "evaluations.heldout.data.count": 4}
    return c
