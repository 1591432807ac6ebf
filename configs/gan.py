"""A generative adversarial network on handwritten digits: two losses that each train their own parameters.

tools/bazel run //configs:gan
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.gan.DigitsGan")
    c.data = dict(target="convoy_zoo.models.digits.scans", split="train")
    c.train.total = "30 epochs"
    c.train.global_batch_size = 64
    c.optimizer.target = "optax.adam"
    c.optimizer.b1 = 0.5
    c.optimizer.learning_rate = 5e-4
    c.optimizer.schedule = "constant"
    c.optimizer.clip_norm = None
    c.optimizer.groups.generator = dict(match="^generator")
    c.optimizer.groups.critic = dict(match="^critic")
    c.log.every = "1 epoch"
    c.tiny = {"train.global_batch_size": 8, "data.limit": 16, "task.width": 16}
    return c
