"""The running mean of the weights, kept beside them, evaluated with them, and what `load` then returns."""

from typing import Any

import jax
import jax.numpy as jnp

from flax_resnet.sections import Average

Variables = dict[str, Any]


def start(variables: Variables, section: Average) -> Variables:
    """Returns the mean before the first step: the variables themselves, copied; {} where none is kept."""
    return jax.tree.map(jnp.copy, variables) if section.decay else {}


def advance(
    average: Variables, variables: Variables, step: jax.Array, section: Average
) -> Variables:
    """Returns the mean after a step: ``d average + (1 - d) variables``.

    Args:
      average: {"params", "batch_stats"}, or {}.
      variables: the same after the update.
      step: int32 [], 1 after the first update.
      section: d is its `decay`, and with its `warmup` at most (1 + step) / (10 + step), so that the first weights
        are soon forgotten. Statistics that are recalibrated stay as they are.
    """
    if not average:
        return average
    decay = jnp.float32(section.decay)
    if section.warmup:
        decay = jnp.minimum(decay, (1 + step) / (10 + step))
    mixed = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, variables)
    if section.recalibrate:
        return {**mixed, "batch_stats": average["batch_stats"]}
    return mixed
