"""The jitted predictions of a Task."""

import jax
import numpy as np

from engine.compile.prediction_program import prediction_step
from engine.config.schema import MeshSpec
from engine.data.batch import Batch
from tests import zoo


class Scores(zoo.Classify):
    """Predicts the logits twice."""

    def predict(self, model, batch):
        logits = model(batch["x"])
        return {"b": logits, "a": [logits[:, 0]]}


def test_result_is_on_every_device_by_name_with_the_weights():
    program = zoo.program(Scores(), mesh=MeshSpec(data=4, fsdp=2))
    spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), zoo.examples(1))
    step, shapes = prediction_step(program.evaluation, spec, 16)
    assert shapes == {"a/0": (), "b": (4,)}
    weight = np.ones(16, np.float32)
    weight[3] = 0
    batch = jax.device_put(Batch(zoo.examples(16), weight), program.evaluation.batch_sharding)
    state = program.init()
    found_weight, found, _ = step(state.params, state.model_state, batch)
    assert found_weight.tolist() == weight.tolist()
    assert all(x.sharding.is_fully_replicated for x in found.values())
    np.testing.assert_array_equal(found["a/0"], found["b"][:, 0])
