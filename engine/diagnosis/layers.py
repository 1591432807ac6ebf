"""The hook of `log.layers`: measures the layers of the model at the steps of its period.

At a step, it measures the next step: its batch, its gradient, and its update. At the last
step of a run it takes the last batch once more.
"""

import jax
import numpy as np

from engine.compile.program import Program
from engine.diagnosis.activations import Activations
from engine.diagnosis.gradient_norms import GradientNorms
from engine.diagnosis.groups import Groups
from engine.loop.trainer import Trainer
from engine.training.state import TrainState
from engine.training.update import has_own_update

type Values = dict[str, dict[str, float]]
"""Name of a measure -> layer -> value. The layer "" stands for the whole model."""
WHOLE = ""


class Layers:
    """Measures each layer, and the whole model; its results are `layers/MEASURE` and `layers/MEASURE/LAYER`."""

    def __init__(self):
        self._norms: GradientNorms | None = None
        self._activations: Activations | None = None

    def run(self, trainer: Trainer, state: TrainState, step: int) -> Values:
        """Returns the values of a step by measure and layer; `engine.loop.hooks.Hook` says when it is called."""
        program, is_last = trainer.program, step >= trainer.total_steps
        groups = Groups.of(program.spec.model)
        norms = self._norms = self._norms or GradientNorms(program, groups)
        state, batch = _plain(program, state), trainer.inputs.read_again(step - is_last)
        sums = {name: groups.sums(values) for name, values in norms.measure(state, batch).items()}
        found = _norms(sums, has_update=not is_last) | _noise(sums, program.batch_size, norms.parts)
        if not has_own_update(program.spec.task):
            activations = self._activations = self._activations or Activations(program, groups)
            found |= activations.measure(state, batch)
        return found


def _plain(program: Program, state: TrainState) -> TrainState:
    """Returns a state of plain dicts, since JAX does not combine them with the read-only dicts of a hook."""
    return jax.tree.unflatten(jax.tree.structure(program.abstract_state), jax.tree.leaves(state))


def _norms(sums: Values, has_update: bool) -> Values:
    """Returns the norms, and the ratio of the update to the weights where these are not all 0.

    After the last step the learning rate is that of no step, so there is no update.
    """
    measures = [name for name in ("param", "grad", "update") if name in sums and (has_update or name != "update")]
    found = {f"{name}_norm": {k: float(np.sqrt(x)) for k, x in _with_whole(sums[name]).items()} for name in measures}
    if has_update:
        updated = {name: sums["param"][name] for name in sums["update"]}  # layers with trained parameters
        pairs = zip(_with_whole(sums["update"]).items(), _with_whole(updated).values(), strict=True)
        found["update_ratio"] = {name: float(np.sqrt(x / square)) for (name, x), square in pairs if square}
    return found


def _noise(sums: Values, rows: int, parts: int) -> Values:
    """Returns the noise scale of the gradient (McCandlish et al. 2018, appendix A.1), where the batch has parts.

    Its two terms are unbiased, but from a single batch. Where the estimate of the squared gradient is not above 0,
    there is no noise scale. The terms of the whole model are returned, too: the quotient of their means over many steps
    is a better estimate than the mean of the quotients.
    """
    if "part" not in sums:
        return {}
    found: Values = {"noise_scale": {}}
    large, small = _with_whole(sums["grad"]), _with_whole(sums["part"])
    for name in large:
        squared = (rows * large[name] - rows / parts * small[name]) / (rows - rows / parts)
        trace = (small[name] - large[name]) / (parts / rows - 1 / rows)
        if squared > 0:
            found["noise_scale"][name] = trace / squared
        if name == WHOLE:
            found |= {"noise_trace": {WHOLE: trace}, "noise_squared_gradient": {WHOLE: squared}}
    return found


def _with_whole(sums: dict[str, float]) -> dict[str, float]:
    return {WHOLE: float(sum(sums.values())), **sums}
