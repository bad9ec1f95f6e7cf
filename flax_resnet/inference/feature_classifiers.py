"""Classifiers on frozen features: k nearest neighbours, and a linear classifier.

Their accuracy measures the quality of the features, independent of the classes that the network was trained on.
"""

import logging
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from flax_resnet.errors import ConfigError, DataError

log = logging.getLogger("flax_resnet")

# Similarities are computed in blocks [QUERIES, KNOWN], 64 MiB: vectors to classify x known vectors.
QUERIES, KNOWN = 1024, 16384
GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
MAX_ITERATIONS = 1000


def check_neighbours(k: int, temperature: float, known: int) -> None:
    """Raise ConfigError unless `k` is between 1 and `known`, and `temperature` is finite and above 0."""
    if not 1 <= k <= known:
        raise ConfigError(key="k", value=k, allowed=f"between 1 and the {known} training images")
    if not 0 < temperature < math.inf:
        raise ConfigError(key="temperature", value=temperature, allowed="a finite number above 0")


def nearest_neighbours(
    vectors: np.ndarray, known: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k known vectors most similar to each vector, block by block.

    Args:
      vectors: float32 [n, C].
      known: float32 [m, C].
      k: 1 to m.

    Returns:
      Cosine similarities, float32 [n, k], in descending order; and indices into `known`, int32 [n, k]. Ties keep
      the order of `known`. The similarity to a vector of zeros is 0.
    """
    similarities = np.full((len(vectors), k), -np.inf, np.float32)
    indices = np.zeros((len(vectors), k), np.int32)
    for start in range(0, len(known), KNOWN):
        block = jnp.asarray(known[start : start + KNOWN])
        for rows in _slices(len(vectors), QUERIES):
            similarities[rows], indices[rows] = merge_block(
                similarities[rows], indices[rows], vectors[rows], block, np.int32(start)
            )
    return similarities, indices


@jax.jit
def merge_block(
    similarities: jax.Array,
    indices: jax.Array,
    vectors: jax.Array,
    block: jax.Array,
    start: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Merge the neighbours found so far with those in the next block of known vectors, which starts at `start`."""
    # Full float32 precision on every device: TF32 would swap neighbours.
    scores = jnp.matmul(_unit(vectors), _unit(block).T, precision=jax.lax.Precision.HIGHEST)
    new = jnp.broadcast_to(start + jnp.arange(len(block), dtype=jnp.int32), scores.shape)
    # Earlier neighbours come first, because top_k takes the first of equal values.
    best, where = jax.lax.top_k(jnp.concatenate([similarities, scores], 1), indices.shape[1])
    return best, jnp.take_along_axis(jnp.concatenate([indices, new], 1), where, 1)


def _unit(vectors: jax.Array) -> jax.Array:
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def knn_predict(
    vectors: np.ndarray,
    known: np.ndarray,
    labels: np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """Classify vectors by a vote of their k nearest neighbours, weighted by exp(similarity / temperature).

    Args:
      vectors: float32 [n, C].
      known: float32 [m, C].
      labels: labels of `known`, int [m], 0 or more.
      k: number of neighbours that vote, 1 to m.
      temperature: above 0; smaller values give the nearest neighbours more weight.

    Returns:
      Predicted labels, int32 [n]; ties go to the smallest label.

    Raises:
      ConfigError: `k` or `temperature` is out of range.

    Source: Wu et al. 2018, "Unsupervised feature learning via non-parametric instance discrimination",
    section 3.4. The default of 20 neighbours is from Caron et al. 2021, "Emerging properties in self-supervised
    vision transformers", section 3.2.
    """
    check_neighbours(k, temperature, len(known))
    similarities, indices = nearest_neighbours(vectors, known, k)
    classes = int(labels.max()) + 1
    predicted = np.empty(len(vectors), np.int32)
    for rows in _slices(len(vectors), QUERIES):
        near = similarities[rows].astype(np.float64)
        # Subtract the largest similarity: the result is the same, and no weight overflows.
        weights = np.exp((near - near[:, :1]) / temperature)
        ballots = np.arange(len(near))[:, None] * classes + labels[indices[rows]]
        votes = np.bincount(ballots.ravel(), weights.ravel(), minlength=len(near) * classes)
        predicted[rows] = votes.reshape(len(near), classes).argmax(1)
    return predicted


def linear_predict(
    vectors: np.ndarray, known: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, float]:
    """Classify vectors by multinomial logistic regression on standardised features.

    C, the inverse strength of regularisation, is the value of GRID with the best accuracy on a held-out fifth of
    the known vectors; ties go to the smallest C. The regression is then fitted to all known vectors.

    Args:
      vectors: float32 [n, C].
      known: float32 [m, C].
      labels: labels of `known`, int [m], 0 or more.

    Returns:
      Predicted labels, int32 [n], and C.

    Raises:
      DataError: there are fewer than two classes.
    """
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"all {len(labels)} training images are of one class",
            key="labels",
            allowed="labels of at least 2 classes",
        )
    held = held_out(labels)
    fitted = ~held
    tested = held if held.any() else fitted  # with very few vectors, none can be held out
    scores, model = [], _regression(GRID[0])
    for strength in GRID:  # ascending; each fit starts from the previous one
        model.set_params(logisticregression__C=strength)
        _fit(model, known[fitted], labels[fitted])
        scores.append((_predicted(model, known[tested]) == labels[tested]).mean())
    best = GRID[int(np.argmax(scores))]
    model = _regression(best)
    if not _fit(model, known, labels):
        log.warning("the linear probe has not converged after %d iterations", MAX_ITERATIONS)
    return _predicted(model, vectors), best


def held_out(labels: np.ndarray) -> np.ndarray:
    """Return a mask of held-out examples, bool [m]: about a fifth of each class, chosen at random.

    Each class keeps at least one example that is not held out.
    """
    order = np.lexsort((np.random.default_rng(0).random(len(labels)), labels))
    first = np.diff(labels[order], prepend=-1) != 0
    held = np.zeros(len(labels), bool)
    held[order[(np.arange(len(labels)) % 5 == 4) & ~first]] = True
    return held


def _regression(strength: float) -> Pipeline:
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, warm_start=True)
    )


def _fit(model: Pipeline, vectors: np.ndarray, labels: np.ndarray) -> bool:
    """Fit the regression, and return whether it has converged."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(vectors, labels)
    return not any(issubclass(w.category, ConvergenceWarning) for w in caught)


def _predicted(model: Pipeline, vectors: np.ndarray) -> np.ndarray:
    """Predict labels in blocks, because the standardisation copies its input."""
    parts = [model.predict(vectors[rows]) for rows in _slices(len(vectors), QUERIES)]
    return np.concatenate(parts).astype(np.int32)


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]
