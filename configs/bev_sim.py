"""Vehicles and lane lines in the bird's-eye view from six simulated cameras: lift and splat.

tools/bazel run //configs:bev_sim        intersection over union 0.298 (0.295 to 0.302) for vehicles and
                                         0.385 (0.378 to 0.400) for lane lines on 200 held-out
                                         scenes, three seeds; 8 minutes of CPU time
python -m convoy_zoo.models.street.camera_prior
                                         the mean mask of the training scenes: 0.070 for vehicles, 0.114 for lane
                                         lines; 4 minutes of CPU time

The scenes are simulated. The held-out and the validation scenes have other seeds. The checkpoint is the last one.
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.street.bev.Bev", width=64)
    c.data = dict(target="convoy_zoo.models.street.camera_scenes.CameraScenes", count=6000)
    c.train.total = "1 epoch"
    c.train.global_batch_size = 2
    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup = "100 steps"
    validation = dict(target="convoy_zoo.models.street.camera_scenes.CameraScenes", count=60, seed=2_000_000)
    c.evaluations.validation = dict(data=validation, every="1000 steps")
    heldout = dict(target="convoy_zoo.models.street.camera_scenes.CameraScenes", count=200, seed=1_000_000)
    c.evaluations.heldout = dict(data=heldout, every=None)
    c.log.every = "50 steps"
    counts = {f"evaluations.{name}.data.count": 4 for name in ("validation", "heldout")}
    c.tiny = {"data.count": 4, **counts}
    return c
