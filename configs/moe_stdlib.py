"""The byte-level language model of lm_stdlib with eight experts per layer, of which each byte uses two.

tools/bazel run //configs:moe_stdlib     13 min 35 s on 2 busy CPU cores; validation 1.0055 nats per byte

bzip2 -9 needs 1.1307 nats per byte for the same files, those of Python 3.13.5.
"""

from . import lm_stdlib


def get_config():
    c = lm_stdlib.get_config()
    c.task = dict(
        target="convoy_zoo.models.moe_decoder.MoeLanguageModel",
        width=192,
        hidden=256,
        depth=4,
        heads=6,
        experts=8,
        top_k=2,
    )
    c.checkpoint.best = "validation/nats"  # the loss also contains the auxiliary loss of the router
    c.hooks.scale.metric = "validation/nats"
    return c
