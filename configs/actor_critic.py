"""An actor-critic on a cart-pole in JAX, whose Task replaces the update: 386 parameters.

tools/bazel run //configs:actor_critic
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.actor_critic.CartPole")
    c.data = dict(target="convoy_zoo.models.actor_critic.episodes")
    c.train.total = "60 steps"
    c.train.global_batch_size = 64
    c.optimizer.target = "optax.adam"
    c.optimizer.learning_rate = 5e-3
    c.optimizer.schedule = "constant"
    c.evaluations.new = dict(
        data=dict(target="convoy_zoo.models.actor_critic.episodes", first=1_000_000, count=64), every="20 steps"
    )
    c.checkpoint.every = "30 steps"
    c.checkpoint.best = "new/steps"
    c.checkpoint.best_mode = "max"
    c.log.every = "10 steps"
    c.tiny = {"train.global_batch_size": 8, "data.limit": 16, "evaluations.new.data.limit": 12, "task.length": 10}
    return c
