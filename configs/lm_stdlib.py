"""A byte-level language model, trained on the source code of Python's standard library.

tools/bazel run //configs:lm_stdlib     11 min 18 s on 2 CPU cores; validation loss 1.0204 nats per byte

After half of the steps the loss is 1.1601. bzip2 -9 needs 1.1307 nats per byte for the same files, the validation
files of Python 3.13.5; other releases of Python have other files.
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.decoder.LanguageModel", width=192, hidden=512, depth=4, heads=6)
    c.data = dict(target="convoy_zoo.models.stdlib_text.StdlibText", split="train", length=256)
    c.train.total = "3000 steps"
    c.train.global_batch_size = 8
    c.mesh.cpu_devices = "auto"
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup = "150 steps"
    c.optimizer.weight_decay = 0.1
    c.optimizer.b2 = 0.98
    c.evaluations.validation = dict(
        data=dict(target="convoy_zoo.models.stdlib_text.StdlibText", split="validation", length=256),
        every="1500 steps",
        batch_size=16,
    )
    c.hooks.scale = dict(target="convoy_zoo.models.stdlib_text.Scale", every="1500 steps")
    c.checkpoint.every = "5 minutes"
    c.checkpoint.best = "validation/loss"
    c.checkpoint.best_mode = "min"
    c.tiny = {
        "task.width": 32,
        "task.hidden": 64,
        "task.depth": 2,
        "task.heads": 4,
        "data.length": 32,
        "data.limit": 64,
        "evaluations.validation.data.length": 32,
        "evaluations.validation.data.limit": 16,
    }
    return c
