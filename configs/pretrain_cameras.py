"""Self-supervised pretraining on simulated cameras: predicts hidden blocks of 300 scenes, without their labels.

tools/bazel run //configs:pretrain_cameras
tools/bazel run //configs:few_labels -- --config.init.checkpoint=runs/pretrain_cameras \
    --config.init.paths="{'head': None}"     fine-tunes its backbone with 10 % of the labels

The page "Fine-tune" of the docs compares it with random weights. The scenes are simulated.
"""

from engine.config import defaults

SCENES = "convoy_zoo.models.street.camera_scenes.CameraScenes"
RESNET = {"depth": (1, 1, 1), "width": 20, "stem": 16, "bottleneck": False}
TINY = {"depth": (1, 1), "width": 4, "stem": 4, "bottleneck": False}


def get_config():
    c = defaults()
    c.task = dict(
        target="convoy_zoo.models.street.masked_views.MaskedViews", width=32, backbone="resnet18", settings=RESNET
    )
    c.data = dict(target=SCENES, count=300, seed=3_000_000)
    c.train.total = "1500 steps"
    c.train.global_batch_size = 2
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup = "50 steps"
    heldout = dict(target=SCENES, count=100, seed=1_000_000)
    c.evaluations.heldout = dict(data=heldout, every=None)
    c.log.every = "50 steps"
    c.tiny = {"data.count": 4, "evaluations.heldout.data.count": 4, "task.settings": TINY}
    return c
