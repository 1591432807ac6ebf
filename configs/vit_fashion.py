"""Fashion-MNIST with a vision transformer of 4x4 patches.

apt-get install dataset-fashion-mnist
tools/bazel run //configs:vit_fashion     not yet trained to its end: no accuracy to expect is known
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="models.vit.Vit", patch=4, width=64, depth=4, heads=4, dropout=0.1)
    c.data = dict(target="models.fashion_mnist.ShiftedPhotographs", split="train")
    c.train.total = "10 epochs"
    c.train.global_batch_size = 128
    c.mesh.cpu_devices = "auto"
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup = "1 epoch"
    c.optimizer.weight_decay = 0.05
    c.evaluations.test = dict(data=dict(target="models.fashion_mnist.Photographs", split="test"), every="1 epoch")
    c.checkpoint.every = "2 epochs"
    c.checkpoint.best = "test/accuracy"
    c.tiny = {
        "train.global_batch_size": 8,
        "data.limit": 16,
        "evaluations.test.data.limit": 12,
        "task.width": 16,
        "task.depth": 2,
    }
    return c
