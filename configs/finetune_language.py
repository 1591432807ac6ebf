"""Fine-tuning of a Llama or Qwen 3 on packed text: here the source code of Python's standard library, as bytes.

convoy train --config=configs.finetune_language --workdir=runs/language
    a tiny model with random weights, which needs no download; 2.25 nats per byte after 300 steps
convoy train --config=configs.finetune_language --workdir=runs/qwen --config.task.size=Qwen3-0.6B \
    --config.init.checkpoint=hf:Qwen3-0.6B --config.optimizer.learning_rate=2e-5
    the weights in the folder Qwen3-0.6B. Bytes are not the tokens of this model: to learn something, give `data` your
    own documents, `engine.Packed`, with the ids of the tokenizer of the model, and its number of ids as `vocabulary`.
"""

from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="convoy_zoo.models.language_sizes.language_model", size="tiny")
    c.data = dict(target="convoy_zoo.models.stdlib_text.StdlibText", split="train", length=256)
    c.train.total = "300 steps"
    c.train.global_batch_size = 8
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup = "20 steps"
    c.optimizer.b2 = 0.95
    c.evaluations.validation = dict(
        data=dict(target="convoy_zoo.models.stdlib_text.StdlibText", split="validation", length=256, limit=256),
        every="100 steps",
        batch_size=16,
    )
    c.checkpoint.best = "validation/loss"
    c.checkpoint.best_mode = "min"
    c.tiny = {"data.length": 32, "data.limit": 64, "evaluations.validation.data.length": 32}
    return c
