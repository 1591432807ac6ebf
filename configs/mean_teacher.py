"""A mean teacher on handwritten digits with 100 labels: weights that are averaged after each step.

tools/bazel run //configs:mean_teacher
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.mean_teacher.MeanTeacher")
    c.data = dict(target="convoy_zoo.models.digits.scans", labels=100)
    c.train.total = "60 epochs"
    c.train.global_batch_size = 64
    c.optimizer.learning_rate = 3e-3
    c.optimizer.trainable = "^student"
    c.evaluations.heldout = dict(data=dict(target="convoy_zoo.models.digits.scans", split="test"), every="10 epochs")
    c.checkpoint.best = "heldout/teacher"
    c.checkpoint.best_mode = "max"
    c.log.every = "5 epochs"
    c.tiny = {"train.global_batch_size": 8, "data.limit": 16, "evaluations.heldout.data.limit": 12}
    return c
