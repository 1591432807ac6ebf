import jax.numpy as jnp
import pytest

from engine.driving.detection_score import DetectionScore
from engine.metrics.classification import ConfusionMatrix
from engine.metrics.direction import higher_is_better, known_mode, mode_of
from engine.metrics.language import Perplexity
from engine.metrics.mean import Mean
from engine.metrics.metric import Metric


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("loss", False),
        ("heldout/top1_accuracy", True),
        ("heldout/accuracy_loss", False),
        ("ap/car", True),
        ("ap50", True),
        ("f1", True),
        ("minFDE", False),
        ("nds/translation_error", False),
        ("walk/distance", None),
        ("mapped", None),
    ],
)
def test_last_word_that_says_it_counts(name, better):
    assert higher_is_better(name) is better


def test_metric_decides_unless_the_name_of_its_entry_does():
    one = jnp.ones(1)
    matrix = ConfusionMatrix.of(one, one, ("a", "b"))
    assert higher_is_better("cars", matrix) is True
    assert higher_is_better("cars/error", matrix) is False
    assert higher_is_better("text", Perplexity(one, one)) is False
    assert higher_is_better("accuracy", Mean(one, one)) is True
    assert higher_is_better("length", Mean(one, one)) is None
    assert (DetectionScore.higher_is_better, Metric.higher_is_better) == (True, None)


def test_mode_follows_the_name_unless_it_is_set():
    assert [mode_of("auto", name) for name in ("a/loss", "a/accuracy", "a/length")] == ["min", "max", "max"]
    assert mode_of("max", "a/loss") == "max"


def test_name_of_an_evaluation_does_not_decide():
    assert [known_mode(name) for name in ("errors/length", "loss/ap/car", "accuracy")] == [None, "max", "max"]
