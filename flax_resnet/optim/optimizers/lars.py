"""LARS: SGD with a trust ratio, which scales the gradient of each layer to the norm of its weights."""

import jax
import jax.numpy as jnp

from flax_resnet.optim.optimizer_section import Optimizer, OptimizerRow, TrustRatio
from flax_resnet.optim.optimizers.sgd import MOMENTUM, momentum


def _trust(section: Optimizer) -> TrustRatio:
    """Return the ratio ``coefficient ||w|| / (||g|| + b ||w|| + epsilon)``, or 1 if w = 0: w could never leave 0.

    With weight decay b. `optax.lars` divides by ``||g + b w||`` instead.
    """

    def ratio(update: jax.Array, param: jax.Array, decay: float) -> jax.Array:
        weights = jnp.linalg.norm(param)
        divisor = jnp.linalg.norm(update) + decay * weights + section.epsilon
        return jnp.where(weights > 0, section.trust_coefficient * weights / divisor, 1)

    return ratio


# You et al. 2017, "Large batch training of convolutional networks", algorithm 1.
ROWS = (
    OptimizerRow(
        name="lars",
        help="SGD with a trust ratio for each layer",
        uses={**MOMENTUM, "trust_coefficient": 0.001, "epsilon": 1e-8},
        direction=None,
        trust=_trust,
        finish=momentum,
    ),
)
