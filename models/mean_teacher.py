"""A mean teacher (Tarvainen and Valpola 2017) on 8x8 scans of digits, most of which have no label (-1)."""

import dataclasses

import jax
import optax
from flax import nnx

from engine import Loss, Mean, Task


@dataclasses.dataclass
class MeanTeacher(Task):
    """The student also learns from the teacher, whose weights are the average of the student's."""

    width: int = 128
    decay: float = 0.99
    noise: float = 0.3
    factor: float = 3.0  # factor on the difference between student and teacher, after a ramp over a fifth of the run

    def build(self, rngs):
        hidden = [nnx.Linear(inputs, self.width, rngs=rngs) for inputs in (64, self.width)]
        student = nnx.Sequential(hidden[0], nnx.relu, hidden[1], nnx.relu, nnx.Linear(self.width, 10, rngs=rngs))
        return nnx.Dict(student=student, teacher=nnx.clone(student))

    def loss(self, model, batch, rng, context):
        noise = self.noise * jax.vmap(lambda key: jax.random.normal(key, (2, 64)))(rng)
        student, teacher = (part(flat(batch) + noise[:, i]) for i, part in enumerate((model.student, model.teacher)))
        labelled = optax.softmax_cross_entropy_with_integer_labels(student, batch["label"])
        same = Loss.of(((nnx.softmax(student) - nnx.softmax(teacher)) ** 2).sum(-1))
        factor = self.factor * (5 * context.step / context.total_steps).clip(max=1)
        return Loss.sum(label=Loss.of(labelled, batch["label"] >= 0), teacher=factor * same)

    def after_step(self, model, context):
        student, teacher = (nnx.state(part, nnx.Param) for part in (model.student, model.teacher))
        nnx.update(model.teacher, optax.incremental_update(student, teacher, 1 - self.decay))

    def evaluate(self, model, batch):
        found = {name: Mean.of(part(flat(batch)).argmax(-1) == batch["label"]) for name, part in model.items()}
        return {**found, "loss": None}  # the loss adds noise, and has no keys in an evaluation


def flat(batch):
    """Returns the scans as `[batch, 64]`."""
    return batch["image"].reshape(-1, 64)
