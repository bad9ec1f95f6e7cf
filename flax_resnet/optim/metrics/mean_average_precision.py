"""Mean average precision: how well the probability of each class separates its examples from all others.

AP of a class is the area under its curve of precision over recall, with one threshold below each bin of the score:
``AP = sum_n (R_n - R_{n-1}) P_n`` in the order of falling thresholds. Scores in one bin count as tied.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.optim.evaluation_metrics import MetricRow, Outputs, Totals

# Bins of each class; fewer above 1024 classes, so that the counts take 32 MiB at most. With MOST_BINS, the result
# is at most 0.0013 below scikit-learn's (2 to 1000 classes), and 0.0001 for a well-trained network of 10 classes.
MOST_BINS, MOST_CELLS = 4096, 2**22
# The bins divide asinh(x / FINEST) evenly, where x is the distance of the log-odds from those of the probability
# 1 / K, so that the scores of an untrained network do not share one bin. The outer bins begin at |x| = RANGE.
FINEST, RANGE = 0.03, 64.0


def score_bins(logits: jax.Array) -> jax.Array:
    """Return the bin of the softmax probability of each class: int32 [N, K] for float32 logits [N, K].

    The bins divide the log-odds log(p / (1 - p)), because probabilities crowd near 0 and 1.
    """
    classes = logits.shape[-1]
    distances = _log_odds(logits) + math.log(max(classes - 1, 1))
    places = jnp.arcsinh(distances / FINEST) / math.asinh(RANGE / FINEST)
    bins = _bins_of(classes)
    return jnp.clip(jnp.floor((places + 1) / 2 * bins), 0, bins - 1).astype(jnp.int32)


def _bins_of(classes: int) -> int:
    return min(MOST_BINS, MOST_CELLS // classes)


def _log_odds(logits: jax.Array) -> jax.Array:
    """Return log(p / (1 - p)) of the softmax probabilities p, float32 [N, K], also where p is 1 in float32."""
    logs = jax.nn.log_softmax(logits, axis=-1)
    largest = jnp.argmax(logits, axis=-1)[:, None] == jnp.arange(logits.shape[-1])[None]
    others = jax.nn.logsumexp(jnp.where(largest, -jnp.inf, logits), axis=-1, keepdims=True)
    # All except the largest are at most 1/2, where 1 - p is accurate.
    return jnp.where(largest, logits - others, logs - jnp.log1p(-jnp.exp(logs)))


def scores(outputs: Outputs) -> jax.Array:
    """Count the examples by (whether the class is their label, class, bin of its score), int32 [2, K, bins]."""
    number = outputs.logits.shape[-1]
    counts = jnp.zeros((2, number, _bins_of(number)), jnp.int32)
    classes = jnp.arange(number)[None]
    is_label = (outputs.labels[:, None] == classes).astype(jnp.int32)
    # Integers: with deterministic operations, XLA on GPU would first sort the examples to add floats.
    counted = outputs.mask.astype(jnp.int32)[:, None]
    return counts.at[is_label, classes, score_bins(outputs.logits)].add(counted)


def average_precision(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Return the average precision of a class.

    Args:
      positives: number of examples of the class in each bin, from the highest scores to the lowest; not all 0.
      negatives: number of other examples in each bin.
    """
    found = positives.cumsum()
    precision = found / np.maximum(found + negatives.cumsum(), 1)
    return float((positives * precision).sum() / found[-1])


def _mean(totals: Totals) -> float:
    negatives, positives = totals["scores"][:, :, ::-1]
    occur = np.flatnonzero(positives.sum(axis=1))
    found = [average_precision(positives[k], negatives[k]) for k in occur]
    return float(np.mean(found)) if found else 0.0


# One class against the rest, Everingham et al. 2010, "The PASCAL visual object classes challenge", section 4.2;
# the sum without interpolation is that of scikit-learn's average_precision_score.
ROWS = (
    MetricRow(
        name="mean_average_precision",
        help="area under precision over recall of each class against the rest, mean over the classes that occur",
        label="mAP",
        sums={"scores": scores},
        value=_mean,
    ),
)
