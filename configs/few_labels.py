"""What each patch of a camera image shows, learnt from the labels of 30 scenes: 10 % of those of `pretrain_cameras`.

tools/bazel run //configs:few_labels                                             from random weights
tools/bazel run //configs:few_labels -- --config.init.checkpoint=runs/pretrain_cameras \
    --config.init.paths="{'head': None}"                                         from the pretrained backbone

The scenes are simulated.
"""

from . import pretrain_cameras


def get_config():
    c = pretrain_cameras.get_config()
    c.task.target = "convoy_zoo.models.street.bev.Views"
    c.data.limit = 30
    c.train.total = "400 steps"
    c.optimizer.learning_rate = 8e-3  # the best of 1e-3, 2e-3, 4e-3 and 8e-3 for random weights
    c.evaluations.heldout.every = "100 steps"
    return c
