"""The optimizer of a run: a row of optimizers/, and what all of them share, composed of Optax transformations."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flax_resnet.models.network import Network
from flax_resnet.optim.optimizer_section import OPTIMIZERS, Optimizer
from flax_resnet.optim.parameter_rules import block_factors, factors, outside_head


def make_optimizer(
    section: Optimizer, learning_rate: optax.Schedule, model: Network, steps_per_unit: int = 1
) -> optax.GradientTransformation:
    """Return the configured optimizer.

    The operations, in order:

    1. Clip the gradient.
    2. Coupled weight decay: add ``weight_decay w``.
    3. Scale the gradient (`OptimizerRow.direction`).
    4. Decoupled weight decay: add ``weight_decay w``.
    5. Scale each layer's update by its trust ratio (lars, lamb).
    6. Multiply by the learning rate and by each parameter's own factor. The result is 0 before the parameter
       unfreezes.
    7. Apply momentum that includes the learning rate (lars, rmsprop).
    8. Wrap all of these (`OptimizerRow.wrap`).

    Args:
      section: the settings.
      learning_rate: the learning rate by update, from 0.
      model: the network; it names its head and its blocks.
      steps_per_unit: updates in one unit of `unfreeze_at`.

    Raises (from the transformation's `init`):
      ConfigError: a rule matches no parameter, or `layer_decay` is set for a network without numbered blocks.

    Source: adaptive clipping, Brock et al. 2021, "High-performance large-scale image recognition", section 4.1.
    """
    row, coupled = OPTIMIZERS[section.name], section.weight_decay_form == "coupled"

    def decay_factors(params: optax.Params) -> Any:
        return factors(params, section.weight_decay_rules, "optimizer.weight_decay_rules")

    def decays(params: optax.Params) -> Any:
        return jax.tree.map(
            lambda factor: factor > 0 and section.weight_decay > 0, decay_factors(params)
        )

    def rate_factors(params: optax.Params) -> Any:
        own = factors(params, section.learning_rate_rules, "optimizer.learning_rate_rules")
        return jax.tree.map(operator.mul, own, block_factors(params, section.layer_decay, model))

    def decayed(update: jax.Array, param: jax.Array, factor: float) -> jax.Array:
        strength = section.weight_decay * factor
        return update + strength * param if strength else update

    def starts(params: optax.Params) -> Any:
        units = factors(params, section.unfreeze_at, "optimizer.unfreeze_at", otherwise=0)
        return jax.tree.map(lambda start: round(start * steps_per_unit), units)

    decay = _with_params(decayed, decay_factors)
    whole = optax.chain(
        optax.clip_by_global_norm(section.clip_norm) if section.clip_norm else optax.identity(),
        optax.masked(optax.adaptive_grad_clip(section.agc), partial(outside_head, head=model.head))
        if section.agc
        else optax.identity(),
        decay if coupled else optax.identity(),
        row.direction(section),
        optax.identity() if coupled else decay,
        optax.masked(row.trust(section), decays) if row.trust else optax.identity(),
        _with_params(lambda update, param, factor: update * factor, rate_factors),
        optax.scale_by_learning_rate(learning_rate),
        _from_step(starts) if section.unfreeze_at else optax.identity(),
        row.finish(section) if row.finish else optax.identity(),
    )
    return row.wrap(section, whole, learning_rate) if row.wrap else whole


def updates_made(opt_state: Any) -> int:
    """Return the number of updates that an optimizer has made: the step of its learning rate."""
    counts = optax.tree_utils.tree_get_all_with_path(opt_state, "count")
    return max(int(count.addressable_data(0)) for _, count in counts)


def _with_params(change: Callable, of_params: Callable) -> optax.GradientTransformation:
    """Return a stateless transformation that applies ``change(update, parameter, factor)`` to each leaf."""

    def init(params: optax.Params) -> optax.EmptyState:
        of_params(params)  # raises for invalid rules before anything is computed
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple:
        return jax.tree.map(change, updates, params, of_params(params)), state

    return optax.GradientTransformation(init, update)


def _from_step(of_params: Callable) -> optax.GradientTransformation:
    """Return a transformation that zeroes updates before each parameter's start step, `of_params(params)`."""

    def init(params: optax.Params) -> optax.ScaleByScheduleState:
        of_params(params)
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple:
        def gated(leaf: jax.Array, start: float) -> jax.Array:
            return jnp.where(state.count >= start, leaf, 0) if start else leaf

        count = optax.safe_increment(state.count)
        return jax.tree.map(gated, updates, of_params(params)), state._replace(count=count)

    return optax.GradientTransformation(init, update)
