"""`merged`, which folds the adapters of a model into its kernels."""

from typing import Any

from flax import nnx

from engine.adapters.modules import APPLIED, applied_to, plain_class
from engine.adapters.products import effective
from engine.adapters.quantized import stored_as
from engine.checkpoint.warm_start import STORED_AS
from engine.training.model import TRAINED


def merged(model: nnx.Module) -> Any:
    """Returns a copy of a model without adapters, whose kernels are those with the adapters.

    Its classes, paths and shapes are those of the model before `adapted`, so programs that know nothing of adapters
    read it: `engine.hub.save(merged(model), "model.safetensors")`. A model without adapters is copied.
    """
    found = nnx.clone(model)
    for _, module in nnx.iter_modules(found):
        held, applied = vars(module), applied_to(module)
        if not applied:
            continue
        kernels = {one.kernel: effective(module, one.kernel, applied) for one in applied}
        module.__class__ = plain_class(type(module))
        for one in applied:
            for part in one.parts:
                delattr(module, one.attribute(part))
        delattr(module, APPLIED)
        if any(one.adapter.dropout for one in applied):
            del module.deterministic
        for name, kernel in kernels.items():
            if stored_as(held[name]):
                delattr(module, f"{name}_scale")
            held[name].set_value(kernel)
    for _, param in nnx.iter_graph(found):
        if isinstance(param, nnx.Param):
            kept = {name: x for name, x in param.get_metadata().items() if name not in (TRAINED, STORED_AS)}
            param.set_metadata(kept)
    return found
