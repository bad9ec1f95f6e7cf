"""Means over classes, in which every class has the same weight."""

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.optim.evaluation_metrics import MetricRow, Outputs, Totals


def hits(outputs: Outputs) -> jax.Array:
    """Return the number of correct predictions of each class, float32 [K]."""
    return _by_class(outputs, outputs.labels, outputs.hits * outputs.counted)


def labelled(outputs: Outputs) -> jax.Array:
    """Return the number of examples of each class, float32 [K]."""
    return _by_class(outputs, outputs.labels, outputs.counted)


def predicted(outputs: Outputs) -> jax.Array:
    """Return the number of examples predicted as each class, float32 [K]."""
    return _by_class(outputs, outputs.predictions, outputs.counted)


def _by_class(outputs: Outputs, classes: jax.Array, values: jax.Array) -> jax.Array:
    """Return the sums of the values [N] by class [N]: float32 [K]."""
    return jnp.zeros(outputs.logits.shape[-1]).at[classes].add(values)


def _class_accuracy(totals: Totals) -> float:
    occur = totals["labelled"] > 0
    return _mean(totals["hits"][occur] / totals["labelled"][occur])


def _macro_f1(totals: Totals) -> float:
    either = totals["labelled"] + totals["predicted"]
    return _mean(2 * totals["hits"][either > 0] / either[either > 0])


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0


ROWS = (
    MetricRow(
        name="class_accuracy",
        help="mean of hits / labelled over the classes that occur",
        label="mean over classes",
        sums={"hits": hits, "labelled": labelled},
        value=_class_accuracy,
    ),
    MetricRow(
        name="macro_f1",
        help="mean of 2 hits / (labelled + predicted) over the classes that occur or are predicted",
        label="macro F1",
        sums={"hits": hits, "labelled": labelled, "predicted": predicted},
        value=_macro_f1,
    ),
)
