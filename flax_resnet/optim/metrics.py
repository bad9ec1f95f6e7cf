"""What an evaluation measures: sums over its batches, the numbers made of them, and by which a run is judged."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.optim.losses import cross_entropy

Array = jax.Array

BINS = 15  # of the confidence, as in Guo et al. 2017


class Metric(NamedTuple):
    """A number of an evaluation: how a person reads it, and which way is better."""

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
EMA = "ema_"  # before the names of the averaged weights' metrics


def is_top1(logits: Array, labels: Array) -> Array:
    """Returns 1 where the largest logit is the label's, else 0: float32 [N]."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def is_top5(logits: Array, labels: Array) -> Array:
    """Returns 1 where the label's logit is among the five largest, else 0: float32 [N]."""
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    return (best == labels[:, None]).any(axis=-1).astype(jnp.float32)


def batch_sums(
    logits: Array, labels: Array, mask: Array, *, confusion: bool = False
) -> dict[str, Array]:
    """Returns the sums of a batch over its unmasked examples, float32; those of all batches are added.

    Args:
      logits: [N, K], float32.
      labels: int32 [N].
      mask: bool [N], False for what does not count.
      confusion: whether to count every pair of classes, [K, K], as well.

    Returns:
      count, loss, top1 and top5 []; hits, labelled and predicted [K]; calibration [BINS]: confidence less
      correctness, of the examples whose confidence lies in each of the bins.
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
    """Returns the METRICS of added sums: loss as it is, all others from 0 to 1.

    `class_accuracy` is the mean over the classes that occur of the share found of each; `macro_f1` the mean of
    2 hits / (labelled + predicted) over those that occur or are predicted; `ece` the mean over the examples of the
    distance between confidence and accuracy of their bin.

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
    """Returns the means of a pass in one dictionary, the averaged weights' as ema_NAME, and count.

    Args:
      sums: {"": sums, "ema_": sums}, the latter only where averaged weights were evaluated.
    """
    found = {prefix + name: v for prefix, part in sums.items() for name, v in means(part).items()}
    return found | {"count": int(sums[""]["count"])}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0


def monitored(metrics: dict[str, float], name: str = "top1") -> float:
    """Returns the value that a run is judged by: the averaged weights', where there are such."""
    return metrics.get(EMA + name, metrics[name])


def score(metrics: dict[str, float], name: str) -> float:
    """Returns what is larger the better the evaluation was, by one of the METRICS."""
    value = monitored(metrics, name)
    return value if METRICS[name].larger_is_better else -value


def has_stalled(scores: list[float], evaluations: int) -> bool:
    """Returns whether the best of the scores lies `evaluations` (0: any number) or more before the last."""
    if not evaluations or not scores:
        return False
    return len(scores) - 1 - scores.index(max(scores)) >= evaluations


def shown(metrics: dict[str, float], prefix: str = "") -> str:
    """Returns an evaluation's metrics as a person reads them."""
    return ", ".join(
        metric.words.format(metrics[prefix + name])
        for name, metric in METRICS.items()
        if prefix + name in metrics
    )
