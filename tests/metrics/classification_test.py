"""Confusion matrices, ROC and precision-recall curves equal those of scikit-learn, with masks and partial batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from engine.base.errors import TaskError
from engine.metrics import ConfusionMatrix, Curve, Image, PrecisionRecall, Roc
from engine.metrics.pairs import TrainingMetrics, pairs_of
from tests.merging import results
from tests.properties import examples

SHAPE = (6, 5)  # fixed, so that every example uses the same compiled operations


@examples(25)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_confusion_matrix_equals_scikit_learn(seed, batch_size):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, 3 + seed % 2, SHAPE), rng.integers(0, 3, SHAPE)
    labels[rng.random(SHAPE) < 0.1] = 255  # not a class
    where = rng.random(SHAPE) < 0.8
    found = results(ConfusionMatrix.of(predicted, labels, ("a", "b", "c", "d"), where), batch_size)
    kept = where & (labels < 4)
    true, guess = labels[kept], predicted[kept]
    assert found["m/accuracy"] == pytest.approx(sklearn.accuracy_score(true, guess), abs=1e-12)
    assert found["m/f1"] == pytest.approx(sklearn.f1_score(true, guess, average="macro"), abs=1e-12)
    assert found["m/iou"] == pytest.approx(sklearn.jaccard_score(true, guess, average="macro"), abs=1e-12)
    np.testing.assert_array_equal(found["m/matrix"], sklearn.confusion_matrix(true, guess, labels=range(4)))
    if (b := (true == 1).sum() + (guess == 1).sum()) > 0:
        assert found["m/f1/b"] == pytest.approx(2 * ((true == 1) & (guess == 1)).sum() / b, abs=1e-12)
    assert isinstance(found["m/image"], Image)


@examples(25)
@given(st.integers(0, 10**6), st.integers(2, 5), st.sampled_from([3, 1000]))
def test_curves_and_their_areas_equal_scikit_learn(seed, batch_size, levels):
    rng = np.random.default_rng(seed)
    labels, where = rng.random(SHAPE) < 0.4, rng.random(SHAPE) < 0.8
    scores = (rng.integers(0, levels, SHAPE) + labels * levels // 4).astype(np.float32)  # with ties
    labels[0, 0], where[0, :2] = ~labels[0, 1], True  # both classes occur
    true, kept = labels[where], scores[where]
    found = results(Roc.of(scores, labels, where), batch_size)
    assert found["m/auc"] == pytest.approx(sklearn.roc_auc_score(true, kept), abs=1e-12)
    x, y, _ = sklearn.roc_curve(true, kept, drop_intermediate=False)
    curve = found["m/curve"]
    assert isinstance(curve, Curve)
    np.testing.assert_allclose((curve.x, curve.y), (x, y), atol=1e-12)

    found = results(PrecisionRecall.of(scores, labels, where), batch_size)
    precision, recall, _ = sklearn.precision_recall_curve(true, kept)
    curve = found["m/curve"]
    assert isinstance(curve, Curve)
    np.testing.assert_allclose((curve.x, curve.y), (recall[::-1], precision[::-1]), atol=1e-12)
    assert found["m/average_precision"] == pytest.approx(sklearn.average_precision_score(true, kept), abs=1e-12)
    assert found["m/auc"] == pytest.approx(sklearn.auc(recall, precision), abs=1e-12)


def test_metrics_without_a_positive_example_or_with_a_score_that_is_nan_are_nan():
    scores, labels = np.ones((2, 3), np.float32), np.zeros((2, 3))
    assert np.isnan(results(Roc.of(scores, labels))["m/auc"])
    assert np.isnan(results(PrecisionRecall.of(scores, labels))["m/average_precision"])
    diverged, labels = np.array([[1, 2, 3], [4, 5, np.nan]]), np.array([[0, 0, 0], [1, 1, 1]])
    for values, where in ((scores, np.zeros((2, 3))), (diverged, None)):
        found = results(Roc.of(values, labels, where))
        found |= results(PrecisionRecall.of(values, labels, where), name="p")
        assert np.isnan([found["m/auc"], found["p/auc"], found["p/average_precision"]]).all()
    empty = results(ConfusionMatrix.of(np.zeros(2, int), np.zeros(2, int), 3, np.zeros(2)))
    assert np.isnan([empty["m/accuracy"], empty["m/f1"], empty["m/iou"]]).all()


def test_matrix_of_many_classes_is_not_a_result():
    found = results(ConfusionMatrix.of(np.zeros(2, int), np.zeros(2, int), 65))
    assert found == {"m/accuracy": 1, "m/f1": 1, "m/iou": 1}


TRUE, GUESS = np.array([0, 1, 2, 2, 1]), np.array([0, 1, 2, 7, -1])  # accuracy 3 / 5


@pytest.mark.parametrize("size", [2, 5])
def test_predictions_outside_of_the_classes_are_an_error(size):
    error = (
        r"metric 'm': the classes are the whole numbers 0 to 2, found 2 other predictions\. "
        r"Name all classes .* outside='column'\)\.$"
    )
    with pytest.raises(TaskError, match=error):
        results(ConfusionMatrix.of(GUESS, TRUE, 3), size)
    with pytest.raises(TaskError, match="found 1 other prediction"):
        results(ConfusionMatrix.of(np.array([0.0, 1.5]), np.array([0, 1]), 3), size)
    asked = results(ConfusionMatrix.of(GUESS, TRUE, 3, (GUESS >= 0) & (GUESS < 3)), size)
    assert asked["m/accuracy"] == 1


@examples(25)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_column_counts_predictions_outside_of_the_classes_as_scikit_learn(seed, batch_size):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, 3, SHAPE), rng.integers(-1, 5, SHAPE)
    where = rng.random(SHAPE) < 0.8
    found = results(ConfusionMatrix.of(predicted, labels, ("a", "b", "c"), where, outside="column"), batch_size)
    true, guess = labels[where], np.where((predicted < 0) | (predicted > 2), 3, predicted)[where]
    assert found["m/accuracy"] == pytest.approx(sklearn.accuracy_score(true, guess), abs=1e-12)
    seen = [label for label in range(3) if label in true or label in guess]
    for name, score in (("f1", sklearn.f1_score), ("iou", sklearn.jaccard_score)):
        expected = score(true, guess, average="macro", labels=seen)
        assert found[f"m/{name}"] == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(found["m/matrix"], sklearn.confusion_matrix(true, guess, labels=range(4))[:3])


def test_column_gives_the_accuracy_of_all_labelled_values():
    found = results(ConfusionMatrix.of(GUESS, TRUE, 3, outside="column"), 2)
    assert found["m/accuracy"] == 0.6
    assert found["m/matrix"].tolist() == [[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1]]
    with pytest.raises(TaskError, match=r"outside = 'drop'. Allowed are 'error' and 'column'"):
        ConfusionMatrix.of(GUESS, TRUE, 3, outside="drop")  # pyright: ignore[reportArgumentType]


def test_fractions_are_no_classes_and_whole_floats_are():
    scores, labels = np.array([0.25, 1, np.nan]), np.array([0.0, 1.0, np.nan])
    with pytest.raises(TaskError, match="whole numbers 0 to 1, found 1 other prediction"):
        results(ConfusionMatrix.of(scores, labels, 2))
    with pytest.raises(TaskError, match="found 1 other prediction"):
        results(ConfusionMatrix.of(labels, scores, 2, outside="column"))
    assert results(ConfusionMatrix.of(np.array([0.0, 1.0, 5.0]), np.array([0, 1, 9]), 2))["m/accuracy"] == 1


def test_training_metric_reports_a_prediction_outside_of_the_classes():
    metric = {"m": ConfusionMatrix.of(np.array([32, 1, 32]), np.array([0, 1, 2]), 32)}
    rows = pairs_of(metric, None)
    with pytest.raises(TaskError, match=r"metric 'm': .* 0 to 31, found 2 other predictions"):
        TrainingMetrics(metric).results(rows, np.array(list(rows.values())))


def test_inputs_of_different_shapes_are_errors():
    with pytest.raises(TaskError, match=r"ConfusionMatrix.of: predicted has shape \[2, 3\], labels \[2\]"):
        ConfusionMatrix.of(np.zeros((2, 3)), np.zeros(2), 3)
    with pytest.raises(TaskError, match=r"Roc.of: scores and labels differ in shape"):
        Roc.of(np.zeros((2, 3)), np.zeros(2))
