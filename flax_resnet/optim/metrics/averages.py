"""Averages over the examples: loss, top-1, top-5."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from flax_resnet.optim.evaluation_metrics import MetricRow, Outputs, Totals, per_example
from flax_resnet.optim.losses import cross_entropy


def loss(outputs: Outputs) -> jax.Array:
    """Return the sum of the softmax cross-entropy, float32 []."""
    labels = jax.nn.one_hot(outputs.labels, outputs.logits.shape[-1])
    return jnp.where(outputs.mask, cross_entropy(outputs.logits, labels), 0).sum()


def top1(outputs: Outputs) -> jax.Array:
    """Return the number of examples whose label has the largest logit, float32 []."""
    return (outputs.hits * outputs.counted).sum()


def top5(outputs: Outputs) -> jax.Array:
    """Return the number of examples whose label has one of the five largest logits, float32 []."""
    logits, labels = outputs.logits, outputs.labels
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    hits = (best == labels[:, None]).any(axis=-1).astype(jnp.float32)
    return (hits * outputs.counted).sum()


def _mean(name: str) -> Callable[[Totals], float]:
    return lambda totals: per_example(totals[name], totals)


ROWS = (
    MetricRow(
        name="loss",
        help="softmax cross-entropy",
        label="loss",
        format=".4f",
        larger_is_better=False,
        sums={"loss": loss},
        value=_mean("loss"),
    ),
    MetricRow(
        name="top1",
        help="share of examples whose label has the largest logit",
        label="top-1",
        sums={"top1": top1},
        value=_mean("top1"),
    ),
    MetricRow(
        name="top5",
        help="share of examples whose label has one of the five largest logits",
        label="top-5",
        sums={"top5": top5},
        value=_mean("top5"),
    ),
)
