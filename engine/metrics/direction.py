"""Whether a larger value of a metric is better: by its class, or by the words of its name.

`Metric.higher_is_better` is set where every number of a metric has one direction. Names decide for a `Mean`, which may
be a loss or an accuracy.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.metrics.metric import Metric

_HIGHER = (
    "acc accuracy ap auc auroc bleu correct dice f1 hit hits iou jaccard map miou nds precision psnr recall return "
    "returns reward rewards rouge score ssim success"
)
_LOWER = (
    "ade bits brier cer collision collisions cost crps divergence ece err error errors fde kl loss losses lpips mae "
    "mape miss misses mse nll offroad penalty perplexity ppl regret residual rmse violations wer"
)
_WORDS = {**dict.fromkeys(_HIGHER.split(), True), **dict.fromkeys(_LOWER.split(), False)}


def higher_is_better(name: str, metric: "Metric | None" = None) -> bool | None:
    """Returns whether a larger value is better; None if neither the name nor the metric says it.

    The last word of the name that says it counts: "heldout/nds/translation_error" is an error. An entry of a metric
    is judged by its own name before the metric is.

    Args:
        name: name of the number, such as "loss", "ap/car" or "heldout/top1_accuracy".
        metric: the metric that gives the number.
    """
    parts = name.split("/")
    for part in reversed(parts[1:] if metric is not None else parts):
        if (found := _by_words(part)) is not None:
            return found
    if metric is None:
        return None
    return metric.higher_is_better if metric.higher_is_better is not None else _by_words(parts[0])


def known_mode(name: str) -> str | None:
    """Returns "max" or "min" for "evaluation/metric", by the name of the metric alone; None if that does not say it."""
    better = higher_is_better(name.partition("/")[2] or name)
    return None if better is None else "max" if better else "min"


def mode_of(mode: str, name: str) -> str:
    """Returns "max" or "min" for a config field that may be "auto"; "max" if the name does not say it."""
    return mode if mode != "auto" else known_mode(name) or "max"


def _by_words(text: str) -> bool | None:
    for word in reversed(re.findall(r"[a-z]+\d*", re.sub(r"([a-z])([A-Z])", r"\1 \2", text).lower())):
        for form in (word, word.rstrip("0123456789")):  # f1, and ap of ap50
            if form in _WORDS:
                return _WORDS[form]
    return None
