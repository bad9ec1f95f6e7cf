"""Dynamic loss scaling for float16, where small gradients would underflow to zero.

The loss is multiplied by a factor before differentiation, and the gradient is divided by the factor.

- If the loss is finite and the gradient is not, the update is skipped (nonfinite.py) and the factor is halved.
- After GROWTH_STEPS finite steps in a row, the factor is doubled.
- After PATIENCE overflows in a row at the smallest factor, the run ends with an error.

Source: Micikevicius et al. 2018, "Mixed precision training", section 3.2.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flax_resnet.models.model_section import Model

Scale = dict[str, jax.Array]

FIRST, LEAST, MOST = 2.0**15, 1.0, 2.0**24
GROWTH_STEPS = 2000
PATIENCE = 100  # consecutive overflows at the smallest factor


def start(section: Model) -> Scale:
    """Return the initial state: the factor, and the number of steps since its last change; {} without float16."""
    if section.dtype != "float16":
        return {}
    return {"factor": jnp.float32(FIRST), "steps": jnp.int32(0)}


def factor(scale: Scale) -> jax.Array | float:
    """Return the factor on the loss: float32 [], or 1.0 without loss scaling."""
    return scale["factor"] if scale else 1.0


def scaled(loss_fn: Callable) -> Callable:
    """Return the loss function multiplied by `inputs.loss_scale`; its metrics are not scaled."""

    def scaled_loss(params: Any, inputs: Any) -> tuple:
        loss, aux = loss_fn(params, inputs)
        return inputs.loss_scale * loss, aux

    return scaled_loss


def unscaled(grads: Any, scale: Scale) -> Any:
    """Return the gradient divided by the factor."""
    return jax.tree.map(lambda leaf: leaf / scale["factor"], grads) if scale else grads


def adjusted(scale: Scale, finite: jax.Array) -> Scale:
    """Return the state after a step whose loss is finite.

    Args:
      scale: the state before the step.
      finite: whether the gradient is finite, bool [].
    """
    steps = jnp.where(finite, scale["steps"] + 1, 0)
    grows = steps == GROWTH_STEPS
    moved = jnp.where(finite, jnp.where(grows, 2.0, 1.0), 0.5) * scale["factor"]
    return {"factor": jnp.clip(moved, LEAST, MOST), "steps": jnp.where(grows, 0, steps)}
