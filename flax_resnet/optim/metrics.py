"""Evaluation metrics: sums over batches, the metrics computed from them, and the monitored metric of a run."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.optim.losses import cross_entropy

Array = jax.Array

BINS = 15  # number of confidence bins, as in Guo et al. 2017


class Metric(NamedTuple):
    """A metric: its format for printing, and whether larger values are better."""

    words: str
    larger_is_better: bool


METRICS = {
    "loss": Metric("loss {:.4f}", False),
    "top1": Metric("top-1 {:.2%}", True),
    "top5": Metric("top-5 {:.2%}", True),
    "class_accuracy": Metric("mean over classes {:.2%}", True),
    "macro_f1": Metric("macro F1 {:.2%}", True),
    "ece": Metric("calibration error {:.2%}", False),
}
EMA = "ema_"  # prefix of the moving average's metrics


def is_top1(logits: Array, labels: Array) -> Array:
    """Return 1 where the label has the largest logit, else 0: float32 [N]."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def is_top5(logits: Array, labels: Array) -> Array:
    """Return 1 where the label has one of the five largest logits, else 0: float32 [N]."""
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    return (best == labels[:, None]).any(axis=-1).astype(jnp.float32)


def batch_sums(
    logits: Array, labels: Array, mask: Array, *, confusion: bool = False
) -> dict[str, Array]:
    """Return sums over the examples of a batch, float32. Add those of all batches to get the sums of a split.

    Args:
      logits: [N, K], float32.
      labels: int32 [N].
      mask: bool [N], False for examples to leave out, such as padding.
      confusion: also count each (label, prediction) pair, [K, K].

    Returns:
      count, loss, top1 and top5, each []; by class, the number of correct predictions (hits), of examples
      (labelled) and of predictions (predicted), each [K]; calibration [BINS]: the sum of (confidence - correctness)
      over the examples whose confidence is in the bin.
    """
    counted = mask.astype(jnp.float32)
    guesses = jnp.argmax(logits, axis=-1)
    correct = is_top1(logits, labels)
    confidence = jax.nn.softmax(logits, axis=-1).max(axis=-1)
    bins = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
    losses = cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]))
    none = jnp.zeros(logits.shape[-1])
    sums = {
        "count": counted.sum(),
        "loss": jnp.where(mask, losses, 0).sum(),
        "top1": (correct * counted).sum(),
        "top5": (is_top5(logits, labels) * counted).sum(),
        "hits": none.at[labels].add(correct * counted),
        "labelled": none.at[labels].add(counted),
        "predicted": none.at[guesses].add(counted),
        "calibration": jnp.zeros(BINS).at[bins].add(jnp.where(mask, confidence - correct, 0)),
    }
    if confusion:
        pairs = jnp.zeros((logits.shape[-1],) * 2).at[labels, guesses]
        sums["confusion"] = pairs.add(counted)
    return sums


def means(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Compute the METRICS from the sums over a split. All except the loss are between 0 and 1.

    - `class_accuracy`: the mean of hits / labelled over the classes that occur.
    - `macro_f1`: the mean of 2 hits / (labelled + predicted) over the classes that occur or are predicted.
    - `ece`: the mean over the bins of abs(mean confidence - accuracy), weighted by their numbers of examples.

    Source: calibration, Guo et al. 2017, "On calibration of modern neural networks", section 2.
    """
    sums = {name: np.asarray(array, np.float64) for name, array in sums.items()}
    count = max(float(sums["count"]), 1.0)
    occur = sums["labelled"] > 0
    either = sums["labelled"] + sums["predicted"]
    return {
        **{name: float(sums[name]) / count for name in ("loss", "top1", "top5")},
        "class_accuracy": _mean(sums["hits"][occur] / sums["labelled"][occur]),
        "macro_f1": _mean(2 * sums["hits"][either > 0] / either[either > 0]),
        "ece": float(np.abs(sums["calibration"]).sum()) / count,
    }


def record(sums: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the metrics of an evaluation and `count` as one dict; those of the moving average are named ema_NAME.

    Args:
      sums: {"": sums, "ema_": sums}; "ema_" only if a moving average was evaluated.
    """
    metrics = {prefix + name: v for prefix, part in sums.items() for name, v in means(part).items()}
    return metrics | {"count": int(sums[""]["count"])}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0


def monitored(metrics: dict[str, float], name: str = "top1") -> float:
    """Return the monitored value of a metric: the moving average's if there is one, else the weights'."""
    return metrics.get(EMA + name, metrics[name])


def score(metrics: dict[str, float], name: str) -> float:
    """Return the monitored value with the sign chosen so that larger is better; `name` is one of METRICS."""
    value = monitored(metrics, name)
    return value if METRICS[name].larger_is_better else -value


def has_stalled(scores: list[float], evaluations: int) -> bool:
    """Return whether the last `evaluations` scores brought no new best; False for `evaluations` = 0."""
    if not evaluations or not scores:
        return False
    return len(scores) - 1 - scores.index(max(scores)) >= evaluations


def shown(metrics: dict[str, float], prefix: str = "") -> str:
    """Format the metrics of an evaluation for printing."""
    return ", ".join(
        metric.words.format(metrics[prefix + name])
        for name, metric in METRICS.items()
        if prefix + name in metrics
    )
