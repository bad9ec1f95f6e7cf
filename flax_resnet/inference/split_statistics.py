"""Statistics of the predictions for a split: accuracy with its interval, classes, pairs, calibration, suspects."""

from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

from flax_resnet.inference.feature_classifiers import nearest_neighbours
from flax_resnet.inference.judged_split import JudgedSplit

BINS = 15  # of the reliability diagram, as in Guo et al. 2017
NEIGHBOURS = 10  # that vote on a suspected label
SURE = 0.5  # least confidence in the class that contradicts a label


class ClassScores(NamedTuple):
    """The scores of each class, float64 [K]; NaN where a score is undefined, as the recall without examples.

    Attributes:
      precision: share of the examples predicted as the class that are of it.
      recall: share of the class's examples that are predicted as it: the accuracy of the class.
      f1: harmonic mean of both.
      support: int64 [K], number of examples of the class.
      predicted: int64 [K], number of examples predicted as the class.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    predicted: np.ndarray


class Calibration(NamedTuple):
    """How confidence and accuracy agree, in bins of confidence of equal width.

    Attributes:
      edges: float64 [B + 1], from 0 to 1.
      counts: int64 [B], number of examples.
      confidence: float64 [B], mean confidence; NaN in an empty bin.
      accuracy: float64 [B]; NaN in an empty bin.
      ece: expected calibration error, the mean of |accuracy - confidence| weighted by the counts.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: float


class Pair(NamedTuple):
    """Examples of one class that are taken for another one.

    Attributes:
      label: the true class.
      prediction: the predicted class.
      rows: the examples, most confident first.
    """

    label: int
    prediction: int
    rows: np.ndarray


class Suspect(NamedTuple):
    """An example whose label may be wrong.

    Attributes:
      row: the example.
      votes: number of its nearest neighbours that bear the predicted class.
      neighbours: the rows of these, nearest first.
    """

    row: int
    votes: int
    neighbours: np.ndarray


def accuracy_interval(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a binomial proportion; (0, 1) without examples.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not count:
        return 0.0, 1.0
    interval = binomtest(hits, count).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def class_scores(split: JudgedSplit) -> ClassScores:
    """Compute precision, recall, F1 and support of every class, with scikit-learn."""
    classes = len(split.class_names)
    predicted = np.bincount(split.predictions, minlength=classes)
    support = np.bincount(split.labels, minlength=classes)
    if not len(split.labels):
        nothing = np.full(classes, np.nan)
        return ClassScores(nothing, nothing, nothing, support, predicted)
    precision, recall, f1, _ = precision_recall_fscore_support(
        split.labels, split.predictions, labels=np.arange(classes), zero_division=np.nan
    )
    # scikit-learn gives 0 for the F1 of a class without examples that nothing is predicted as.
    f1 = np.where(support + predicted > 0, f1, np.nan)
    return ClassScores(precision, recall, f1, support, predicted)


def confusion_matrix(split: JudgedSplit) -> np.ndarray:
    """Return the number of examples by (label, prediction), int64 [K, K]."""
    classes = len(split.class_names)
    cells = split.labels.astype(np.int64) * classes + split.predictions
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def worst_pairs(split: JudgedSplit, most: int) -> list[Pair]:
    """Return the pairs (label, prediction) with the most mistakes, at most `most`, the most frequent first."""
    mistakes = confident_mistakes(split)
    pairs = np.stack([split.labels[mistakes], split.predictions[mistakes]], axis=1)
    found, inverse, counts = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [Pair(int(found[n][0]), int(found[n][1]), mistakes[inverse.ravel() == n]) for n in order]


def calibration(split: JudgedSplit, bins: int = BINS) -> Calibration:
    """Compute the reliability diagram and the expected calibration error; a bin excludes its lower edge.

    Source: Guo et al. 2017, "On calibration of modern neural networks", section 2.
    """
    edges = np.linspace(0, 1, bins + 1)
    confidences = split.confidences.astype(np.float64)
    where = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(where, confidences, minlength=bins) / counts
        accuracy = np.bincount(where, split.is_right, minlength=bins) / counts
    gaps = np.abs(np.nan_to_num(accuracy - confidence))
    return Calibration(
        edges, counts, confidence, accuracy, float((gaps * counts).sum() / max(counts.sum(), 1))
    )


def confident_mistakes(split: JudgedSplit) -> np.ndarray:
    """Return the rows of all mistakes, the most confident first."""
    order = np.argsort(-split.confidences, kind="stable")
    return order[~split.is_right[order]]


def least_certain(split: JudgedSplit) -> np.ndarray:
    """Return all rows, the least confident prediction first."""
    return np.argsort(split.confidences, kind="stable")


def suspects(split: JudgedSplit, *, k: int = NEIGHBOURS, sure: float = SURE) -> list[Suspect]:
    """Return examples whose label is suspected to be wrong, the most confident first.

    The network predicts another class with a confidence of at least `sure`, and so do more than half of the `k`
    nearest other examples of the split: they are labelled with the predicted class. Near is by cosine similarity
    of the features. Only examples with kept features are searched.
    """
    others = len(split.kept) - 1
    mistaken = ~split.is_right[split.kept] & (split.confidences[split.kept] >= sure)
    places = np.flatnonzero(mistaken)
    if not len(places) or others < k:
        return []
    vectors = split.features.astype(np.float32)
    _, near = nearest_neighbours(vectors[places], vectors, k + 1)
    found = []
    for place, neighbours in zip(places, near, strict=True):
        row = int(split.kept[place])
        rows = split.kept[neighbours[neighbours != place][:k]]
        agreeing = rows[split.labels[rows] == split.predictions[row]]
        if len(agreeing) > k / 2:
            found.append(Suspect(row, len(agreeing), agreeing))
    return sorted(found, key=lambda one: -split.confidences[one.row])
