"""Fashion-MNIST with a vision transformer of 4x4 patches.

apt-get install dataset-fashion-mnist
tools/bazel run //configs:vit_fashion     29 min 37 s on 2 busy CPU cores; test accuracy 88.4 %
"""

from . import fashion_mnist


def get_config():
    c = fashion_mnist.get_config()
    c.task = dict(target="convoy_zoo.models.vit.Vit", patch=4, width=64, depth=4, heads=4, dropout=0.1)
    c.train.global_batch_size = 128
    c.mesh.cpu_devices = "auto"
    c.optimizer.learning_rate = 2e-3
    c.optimizer.weight_decay = 0.05
    c.tiny = {**c.tiny, "task.width": 16, "task.depth": 2}
    return c
