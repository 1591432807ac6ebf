"""Detection of digits on a canvas of 32x32 pixels: a convolutional head with 23,791 parameters.

tools/bazel run //configs:detection       28 s on 2 busy CPU cores, of which 11 s compiling; held-out average
                                          precision 0.594 over IoU 0.5 to 0.95, 0.809 at IoU 0.5
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.detection.Detection", width=16)
    c.data = dict(target="convoy_zoo.models.detection.scenes", count=2000)
    c.train.total = "20 epochs"
    c.train.global_batch_size = 32
    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup = "1 epoch"
    c.evaluations.heldout = dict(
        data=dict(target="convoy_zoo.models.detection.scenes", count=500, seed=1, split="test"), every="5 epochs"
    )
    c.checkpoint.best = "heldout/ap"
    c.log.every = "1 epoch"
    c.tiny = {"train.global_batch_size": 8, "data.count": 16, "evaluations.heldout.data.count": 12}
    return c
