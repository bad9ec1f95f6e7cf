"""Dynamic loss scaling: with float16, small gradients would be rounded to zero.

The loss is multiplied by a factor before it is differentiated, and the gradient divided by it. Where the gradient
is not finite, the factor was too large: nothing is learned from that step, and the factor is halved. After so many
steps without that, it is doubled. Where the least factor is too large so many times in a row, the run ends.

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
PATIENCE = 100  # steps in a row that overflow at the least factor


def start(section: Model) -> Scale:
    """Returns the factor before the first step, and the steps since it last changed; {} but for float16."""
    if section.dtype != "float16":
        return {}
    return {"factor": jnp.float32(FIRST), "steps": jnp.int32(0)}


def factor(scale: Scale) -> jax.Array | float:
    """Returns what the loss is multiplied by, float32 []."""
    return scale["factor"] if scale else 1.0


def scaled(loss_fn: Callable) -> Callable:
    """Return a loss multiplied by `inputs.loss_scale`; its metrics are those of the loss itself."""

    def scaled_loss(params: Any, inputs: Any) -> tuple:
        loss, aux = loss_fn(params, inputs)
        return inputs.loss_scale * loss, aux

    return scaled_loss


def unscaled(grads: Any, scale: Scale) -> Any:
    """Returns the gradient of the loss itself."""
    return jax.tree.map(lambda leaf: leaf / scale["factor"], grads) if scale else grads


def is_finite(grads: Any) -> jax.Array:
    """Returns whether all of a gradient is finite, bool []."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)]).all()


def advance(old: Any, new: Any, finite: jax.Array) -> Any:
    """Returns the state after a step: the new one where the gradient is finite, else the old, one step on.

    Args:
      old: training state before the update.
      new: after it.
      finite: of the gradient that it was made with.
    """
    scale = old.loss_scale
    steps = jnp.where(finite, scale["steps"] + 1, 0)
    grows = steps == GROWTH_STEPS
    moved = jnp.where(finite, jnp.where(grows, 2.0, 1.0), 0.5) * scale["factor"]
    kept = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, old)
    return kept.replace(
        step=new.step,
        loss_scale={
            "factor": jnp.clip(moved, LEAST, MOST),
            "steps": jnp.where(grows, 0, steps),
        },
    )
