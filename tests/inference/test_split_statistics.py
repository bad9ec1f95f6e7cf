"""The statistics of a split, against scikit-learn, published values, and counting by hand."""

import numpy as np
import pytest
from sklearn import metrics

from flax_resnet.inference import split_statistics as statistics
from flax_resnet.inference.judged_split import JudgedSplit

CLASSES = 5  # the last one has no examples, and nothing is predicted as it


def made(labels, predictions, confidences, features=None, classes=CLASSES):
    count = len(labels)
    if features is None:
        features = np.zeros((count, 2), np.float16)
    confidences = np.array(confidences, np.float32)
    return JudgedSplit(
        tuple(f"class {n}" for n in range(classes)),
        np.arange(count, dtype=np.int32),
        np.array(labels, np.int32),
        np.array(predictions, np.int32),
        confidences,
        np.where(np.array(labels) == predictions, confidences, (1 - confidences) / classes),
        np.arange(count, dtype=np.int32),
        features,
    )


@pytest.fixture(scope="module")
def split():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, CLASSES - 1, 400)
    predictions = np.where(draw.random(400) < 0.7, labels, draw.integers(0, CLASSES - 1, 400))
    return made(labels, predictions, draw.uniform(0.2, 1, 400))


def test_the_interval_is_wilsons():
    # Wilson's formula, with z = 1.959964.
    for hits, count in ((0, 10), (81, 263), (15, 148), (360, 360)):
        z, share = 1.959963984540054, hits / count
        middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
        half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
        expected = (max(middle - half, 0), min(middle + half, 1))
        assert statistics.accuracy_interval(hits, count) == pytest.approx(expected, abs=1e-12)
    # Newcombe 1998, table I.
    assert statistics.accuracy_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert statistics.accuracy_interval(0, 0) == (0, 1)


def test_the_scores_of_classes_are_counts(split):
    scores = statistics.class_scores(split)
    matrix = statistics.confusion_matrix(split)
    expected = metrics.confusion_matrix(split.labels, split.predictions, labels=range(CLASSES))
    np.testing.assert_array_equal(matrix, expected)
    hits = np.diag(matrix)[:-1]
    np.testing.assert_allclose(scores.recall[:-1], hits / matrix.sum(1)[:-1])
    np.testing.assert_allclose(scores.precision[:-1], hits / matrix.sum(0)[:-1])
    np.testing.assert_allclose(scores.f1[:-1], 2 * hits / (matrix.sum(0) + matrix.sum(1))[:-1])
    np.testing.assert_array_equal(scores.support, matrix.sum(1))
    np.testing.assert_array_equal(scores.predicted, matrix.sum(0))
    # What no example defines is no number, and neither 0 nor 1.
    assert np.isnan([scores.precision[-1], scores.recall[-1], scores.f1[-1]]).all()


def test_a_class_that_is_never_predicted_has_no_precision():
    scores = statistics.class_scores(made([0, 0, 1], [0, 0, 0], [0.9, 0.8, 0.7], classes=3))
    np.testing.assert_allclose(scores.recall, [1, 0, np.nan])
    np.testing.assert_allclose(scores.precision, [2 / 3, np.nan, np.nan])
    np.testing.assert_allclose(scores.f1, [0.8, 0, np.nan])


def test_a_split_without_examples_has_no_scores():
    split = made([], [], [])
    assert np.isnan(statistics.class_scores(split).f1).all()
    assert statistics.calibration(split).ece == 0
    assert statistics.worst_pairs(split, 3) == []
    assert statistics.suspects(split) == []


def test_the_calibration_error_is_the_mean_gap(split):
    found = statistics.calibration(split)
    gap = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = (split.confidences > low) & (split.confidences <= high)
        assert found.counts[number] == inside.sum()
        if inside.any():
            accuracy, confidence = split.is_right[inside].mean(), split.confidences[inside].mean()
            assert found.accuracy[number] == pytest.approx(accuracy)
            assert found.confidence[number] == pytest.approx(confidence)
            gap += inside.mean() * abs(accuracy - confidence)
    assert found.ece == pytest.approx(gap, abs=1e-6)
    sure = made([0, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1])
    assert statistics.calibration(sure).ece == pytest.approx(0.25)
    # A bin includes its upper edge.
    halves = made([0, 0, 0], [0, 0, 0], [0.5, 0.5, 0.75])
    np.testing.assert_array_equal(statistics.calibration(halves, bins=2).counts, [2, 1])


def test_mistakes_come_most_confident_first(split):
    rows = statistics.confident_mistakes(split)
    assert len(rows) == (~split.is_right).sum()
    assert not split.is_right[rows].any()
    assert (np.diff(split.confidences[rows]) <= 0).all()
    uncertain = statistics.least_certain(split)
    assert len(uncertain) == 400
    assert (np.diff(split.confidences[uncertain]) >= 0).all()


def test_the_worst_pairs_are_the_largest_cells_off_the_diagonal(split):
    matrix = statistics.confusion_matrix(split)
    np.fill_diagonal(matrix, 0)
    pairs = statistics.worst_pairs(split, 4)
    assert [len(pair.rows) for pair in pairs] == sorted(matrix.ravel(), reverse=True)[:4]
    for pair in pairs:
        assert len(pair.rows) == matrix[pair.label, pair.prediction]
        assert (split.labels[pair.rows] == pair.label).all()
        assert (split.predictions[pair.rows] == pair.prediction).all()
        assert (np.diff(split.confidences[pair.rows]) <= 0).all()


def test_a_label_is_suspected_if_prediction_and_neighbours_contradict_it():
    """Two classes in two directions. Three labels are wrong; one prediction is wrong, which neighbours show."""
    draw = np.random.default_rng(1)
    truth = np.arange(60) % 2
    features = (np.eye(2)[truth] + draw.normal(0, 0.02, (60, 2))).astype(np.float16)
    labels, predictions = truth.copy(), truth.copy()
    labels[[4, 9, 20]] = 1 - truth[[4, 9, 20]]
    predictions[30] = 1 - truth[30]
    confidences = np.full(60, 0.9)
    confidences[9], confidences[20] = 0.95, 0.4  # one is not sure enough
    found = statistics.suspects(made(labels, predictions, confidences, features, classes=2))
    assert [one.row for one in found] == [9, 4]
    for one in found:
        assert one.votes == len(one.neighbours) > 5
        assert one.row not in one.neighbours
        assert (labels[one.neighbours] == truth[one.row]).all()


def test_an_example_is_no_neighbour_of_itself():
    labels = np.array([1] + [0] * 20)
    found = statistics.suspects(made(labels, [0] * 21, [0.9] * 21, np.ones((21, 2), np.float16)))
    assert [(one.row, one.votes) for one in found] == [(0, statistics.NEIGHBOURS)]


def test_a_few_examples_have_no_suspects():
    features = np.ones((8, 2), np.float16)
    assert statistics.suspects(made([1] + [0] * 7, [0] * 8, [0.9] * 8, features)) == []
