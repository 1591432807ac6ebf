"""Detection of cars, trucks, pedestrians and cyclists in simulated lidar sweeps: pillars and a heatmap of centres.

tools/bazel run //configs:lidar_sim         mean average precision 0.683 (0.678 to 0.688) of three seeds on 200 held-out
                                            sweeps, nuScenes detection score 0.619; 335 s of CPU time on one core
python -m convoy_zoo.models.street.lidar_baseline
                                            clusters and size templates, without learning: mean average precision
                                            0.317 on the same sweeps

The scenes are simulated. On average, a sweep has 34,000 points, 11 cars (17 % of them hidden by more than half), 2
trucks (6 %), 6 pedestrians (36 %) and 3 cyclists (29 %). The median is 177, 526, 25 and 48 points on an object; a
tenth of the pedestrians have at most 3. The held-out sweeps have another seed. The velocity is a guess from one sweep.
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.street.lidar.LidarDetection", width=32)
    c.data = dict(target="convoy_zoo.models.street.lidar.sweeps", count=4800)
    c.train.total = "1 epoch"
    c.train.global_batch_size = 4
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup = "100 steps"
    validation = dict(target="convoy_zoo.models.street.lidar.sweeps", count=60, seed=2_000_000)
    c.evaluations.validation = dict(data=validation, every="600 steps")
    c.evaluations.heldout = dict(
        data=dict(target="convoy_zoo.models.street.lidar.sweeps", count=200, seed=1_000_000), every=None
    )
    c.log.every = "50 steps"
    counts = {f"evaluations.{name}.data.count": 4 for name in ("validation", "heldout")}
    c.tiny = {"train.global_batch_size": 2, "data.count": 4, **counts}
    return c
