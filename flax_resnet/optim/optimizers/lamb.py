"""LAMB: Adam with a trust ratio, which scales the update of each layer to the norm of its weights."""

import jax
import jax.numpy as jnp

from flax_resnet.optim.optimizer_section import OptimizerRow
from flax_resnet.optim.optimizers.adamw import ADAM, adam


def _ratio(update: jax.Array, param: jax.Array, decay: float) -> jax.Array:
    """Return the ratio ``||w|| / ||r + b w||`` with Adam's direction r and weight decay b, or 1 if a norm is 0."""
    weights, whole = jnp.linalg.norm(param), jnp.linalg.norm(update + decay * param)
    return jnp.where((weights > 0) & (whole > 0), weights / jnp.where(whole > 0, whole, 1), 1)


# You et al. 2020, "Large batch optimization for deep learning", algorithm 2.
ROWS = (
    OptimizerRow(
        name="lamb",
        help="Adam with a trust ratio for each layer",
        uses=ADAM,
        direction=adam,
        trust=lambda section: _ratio,
    ),
)
