"""Schedule-Free SGD: the gradient is taken between the SGD iterate and the average of the iterates."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from flax_resnet.optim.optimizer_section import Optimizer, OptimizerRow
from flax_resnet.settings import Clash


def _schedule_free(
    section: Optimizer, sgd: optax.GradientTransformation, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """Return the transformation of y, with z from SGD and x the average of z weighted by the squared rates.

    ``y = (1 - momentum) z + momentum x``. Training computes the gradient at y; x is evaluated.
    """
    inner = contrib.schedule_free(sgd, learning_rate, b1=section.momentum)

    def update(grads: Any, state: Any, params: Any = None) -> tuple:
        updates, new = inner.update(grads, state, params)

        # Optax computes x from y and z anew in each step. Rounding moved frozen parameters by 2e-4 in 5,000 steps.
        def moved(update: jax.Array, y: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where((old == y) & (new == y), 0, update)

        return jax.tree.map(moved, updates, params, state.z, new.z), new

    return optax.GradientTransformation(inner.init, update)


def _average(state: Any, params: optax.Params) -> optax.Params:
    """Return x. If y = z, as for frozen parameters, it is exactly y; with `schedule_free_eval_params` it is not."""
    past = (1 - state.b1) / state.b1
    return jax.tree.map(lambda y, z: y + past * (y - z), params, state.z)


# Defazio et al. 2024, "The road less scheduled", algorithm 1.
ROWS = (
    OptimizerRow(
        name="schedule_free_sgd",
        help="SGD that averages its iterates instead of decaying the rate; meant for schedule.name=constant",
        uses={"momentum": 0.9, "weight_decay_form": "coupled"},
        clashes=(
            Clash(
                key="momentum",
                when=lambda c: c.momentum == 0,
                allowed="above 0 with optimizer.name='schedule_free_sgd'",
            ),
        ),
        direction=None,
        elementwise=True,
        wrap=_schedule_free,
        average=_average,
    ),
)
