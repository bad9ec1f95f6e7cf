"""The calibration error: how far confidences are from accuracies."""

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.optim.evaluation_metrics import MetricRow, Outputs, Totals, per_example

BINS = 15  # number of confidence bins, as in Guo et al. 2017


def calibration(outputs: Outputs) -> jax.Array:
    """Return the sum of (confidence - correctness) by bin of the confidence, float32 [BINS]."""
    confidence = jax.nn.softmax(outputs.logits, axis=-1).max(axis=-1)
    bins = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
    gaps = jnp.where(outputs.mask, confidence - outputs.hits, 0)
    return jnp.zeros(BINS).at[bins].add(gaps)


def _error(totals: Totals) -> float:
    """Return the mean over the bins of abs(mean confidence - accuracy), weighted by their numbers of examples."""
    return per_example(np.abs(totals["calibration"]).sum(), totals)


# Guo et al. 2017, "On calibration of modern neural networks", section 2.
ROWS = (
    MetricRow(
        name="ece",
        help="expected calibration error: mean distance of confidence and accuracy, in bins of the confidence",
        label="calibration error",
        larger_is_better=False,
        sums={"calibration": calibration},
        value=_error,
    ),
)
