"""Detection in simulated lidar sweeps of the streets that the cameras see: crossings, and any heading.

tools/bazel run //configs:lidar_crossings     mean average precision 0.613 (0.611, 0.614), nuScenes detection
                                              score 0.564, on 200 held-out sweeps, two seeds; 6 minutes of
                                              CPU time

It trains the model of `lidar_sim` for `fusion_sim`. The scenes are simulated.
"""

from . import lidar_sim


def get_config():
    c = lidar_sim.get_config()
    for part in (c, c.evaluations.validation, c.evaluations.heldout):
        part.data.update(target="convoy_zoo.models.street.fusion.scenes", images=False)
    return c
