"""Model FLOPs: what a step of a model computes by definition, whatever the mesh, the platform and `train.remat`.

They follow appendix B of PaLM (Chowdhery et al. 2022): the products of the loss and its gradient, and no recomputation.
In addition, causal attention counts half of its products (as in Dao 2023, FlashAttention-2), and of experts the
choices of the tokens count, whatever the capacity.
"""

import dataclasses

import jax

from engine.base.types import PyTree
from engine.compile.flops import count_flops
from engine.data.batch import Batch
from engine.parallel.layout import with_layout
from engine.parallel.mesh import one_device
from engine.training.gradients import gradients
from engine.training.state import TrainState
from engine.training.step_spec import StepSpec
from engine.training.update import has_own_update, own_update


def model_flops(spec: StepSpec, metric_names: tuple[str, ...], state: TrainState, batch: Batch) -> int:
    """Returns the FLOPs of the loss and its gradient for a global batch; of the whole step if the Task has an `update`.

    It traces the loss once more, for one device: with plain attention (`layers/reference.py`), unsplit batches,
    dropless experts, and no `jax.checkpoint`. An optimizer's products do not count. Attention that an author writes
    without `engine.layers.attention` counts in full, and so does recomputation in a `jax.custom_vjp` or an `update`.

    Args:
        spec: parts of the train step.
        metric_names: names of the Task's metrics.
        state: abstract state.
        batch: abstract global batch.
    """
    layout = dataclasses.replace(
        spec.layout, mesh=one_device(spec.mesh), remat="none", counts_flops=True, offload_optimizer=False, used=set()
    )
    reference = dataclasses.replace(spec, layout=layout, accumulate=1, opt_shardings=None)

    def step(state: TrainState, batch: Batch, key: jax.Array) -> PyTree:
        if has_own_update(spec.task):
            return own_update(reference, state, batch, key, state.step)
        return gradients(reference, metric_names, state, batch, key, state.step)

    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, batch))
    traced = jax.make_jaxpr(with_layout(layout, step))(*args, jax.random.key(0))
    return count_flops(traced.jaxpr)
