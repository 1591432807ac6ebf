"""The byte-level language model of lm_stdlib with eight experts a layer, two of which each byte passes.

tools/bazel run //configs:moe_stdlib     13 min 35 s on 2 CPU cores, busy with other work; validation 1.0055 nats a byte

bzip2 -9 needs 1.1307 for the same files. Python 3.13.5, whose library it reads.
"""

from configs import lm_stdlib


def get_config():
    c = lm_stdlib.get_config()
    c.task = dict(
        target="models.moe_decoder.MoeLanguageModel", width=192, hidden=256, depth=4, heads=6, experts=8, top_k=2
    )
    c.checkpoint.best = "validation/nats"  # the loss holds what the router is charged too
    c.hooks.scale.metric = "validation/nats"
    return c
