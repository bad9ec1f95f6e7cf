"""The classifiers on features: neighbours and regression against scikit-learn, and what is held out."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flax_resnet.inference import feature_classifiers


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (7, 1.0), (101, 5e-4)])
def test_the_vote_is_that_of_scikit_learn_and_of_its_formula(monkeypatch, k, temperature):
    """Over several blocks of either kind, the last ones smaller."""
    monkeypatch.setattr(feature_classifiers, "QUERIES", 16)
    monkeypatch.setattr(feature_classifiers, "KNOWN", 40)
    draw = np.random.default_rng(0)
    known, vectors = (
        draw.standard_normal((n, 12)).astype(np.float32) * draw.uniform(0.1, 10, (n, 1))
        for n in (101, 53)
    )
    known, vectors = known.astype(np.float32), vectors.astype(np.float32)
    labels = draw.integers(0, 4, 101)
    found = feature_classifiers.knn_predict(vectors, known, labels, k=k, temperature=temperature)

    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, known)]
    similarity = unit[0].astype(np.float64) @ unit[1].T.astype(np.float64)
    expected = []
    for row in similarity:
        nearest = np.argsort(-row)[:k]
        shares = np.exp((row[nearest] - row.max()) / temperature)
        expected.append(max(range(4), key=lambda c: shares[labels[nearest] == c].sum()))
    np.testing.assert_array_equal(found, expected)

    def weight(distances):  # 1 - similarity
        return np.exp((distances.min(axis=1, keepdims=True) - distances) / temperature)

    judge = KNeighborsClassifier(k, weights=weight, metric="cosine", algorithm="brute")
    np.testing.assert_array_equal(found, judge.fit(known, labels).predict(vectors))


def test_of_equally_similar_ones_the_first_comes_first(monkeypatch):
    monkeypatch.setattr(feature_classifiers, "KNOWN", 3)
    known = np.eye(4, dtype=np.float32)[[1, 0, 0, 0, 1, 0, 2]]
    query = np.array([[5, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    similarities, places = feature_classifiers.nearest_neighbours(query, known, 5)
    np.testing.assert_array_equal(places, [[1, 2, 3, 5, 0], [0, 1, 2, 3, 4]])
    np.testing.assert_allclose(similarities, [[1, 1, 1, 1, 0], [0] * 5], atol=1e-7)


def test_similarities_are_held_block_by_block(monkeypatch):
    monkeypatch.setattr(feature_classifiers, "QUERIES", 8)
    monkeypatch.setattr(feature_classifiers, "KNOWN", 16)
    merged, shapes = feature_classifiers.merge_block, set()

    def watched(*arguments):
        shapes.add((len(arguments[2]), len(arguments[3])))
        return merged(*arguments)

    monkeypatch.setattr(feature_classifiers, "merge_block", watched)
    feature_classifiers.nearest_neighbours(
        np.ones((20, 3), np.float32), np.ones((40, 3), np.float32), 4
    )
    assert shapes == {(8, 16), (4, 16), (8, 8), (4, 8)}


@pytest.mark.parametrize(("noise", "dimensions", "best"), [(1.0, 60, 1e-2), (0.05, 2, 1e-1)])
def test_regularisation_is_chosen_on_the_held_out_fifth(noise, dimensions, best):
    """Much of it where most dimensions are noise; of equally good ones the smallest C."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 150).astype(np.int32)
    known = draw.standard_normal((150, dimensions)).astype(np.float32) * noise
    known[:, 0] += labels
    vectors = known[::3] + np.float32(0.01)

    def regression(strength):
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))

    held = feature_classifiers.held_out(labels)
    scores = [
        regression(c).fit(known[~held], labels[~held]).score(known[held], labels[held])
        for c in feature_classifiers.GRID
    ]
    assert feature_classifiers.GRID[int(np.argmax(scores))] == best
    predicted, c = feature_classifiers.linear_predict(vectors, known, labels)
    assert c == best
    np.testing.assert_array_equal(predicted, regression(best).fit(known, labels).predict(vectors))


def test_a_fifth_is_held_out_but_never_the_whole_of_a_class():
    labels = np.random.default_rng(0).integers(0, 4, 1000)
    held = feature_classifiers.held_out(labels)
    assert held.sum() == 200
    for c in range(4):
        assert abs(held[labels == c].mean() - 0.2) < 0.01
    assert (
        len(set(np.flatnonzero(feature_classifiers.held_out(np.zeros(100, int))) % 5)) > 1
    )  # by chance
    np.testing.assert_array_equal(held, feature_classifiers.held_out(labels))
    few = np.array([0] * 4 + [1] + [2] * 5)  # the fifth in order is the only one of its class
    assert set(few[~feature_classifiers.held_out(few)]) == {0, 1, 2}
    # One of each class: none can be spared, and still there is a classifier.
    predicted, _ = feature_classifiers.linear_predict(
        *[np.eye(3, dtype=np.float32)] * 2, np.arange(3)
    )
    np.testing.assert_array_equal(predicted, [0, 1, 2])
