"""The optimizer of a run: a row of optimizers/, and what all of them share, composed of Optax transformations."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flax_resnet.models.network import Network
from flax_resnet.models.stacking import stack_blocks, unstack_blocks
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
    4. Decoupled weight decay: add ``weight_decay w``. Without a direction (lars), both forms are this one.
    5. Scale each layer's update by its trust ratio (lars, lamb).
    6. Multiply by the learning rate and by each parameter's own factor. The result is 0 before the parameter
       unfreezes.
    7. Apply momentum that includes the learning rate (lars, rmsprop).
    8. Wrap all of these (`OptimizerRow.wrap`).

    Args:
      section: the settings.
      learning_rate: the learning rate by update, from 0.
      model: the network; it names its head and its blocks. With `scan_blocks`, the updates equal those of the
        network without; `sees_blocks` says which layout the optimizer's state has.
      steps_per_unit: updates in one unit of `unfreeze_at`.

    Raises (from the transformation's `init`):
      ConfigError: a rule matches no parameter, or `layer_decay` is set for a network without numbered blocks.

    Source: adaptive clipping, Brock et al. 2021, "High-performance large-scale image recognition", section 4.1.
    """
    row = OPTIMIZERS[section.name]
    coupled = section.weight_decay_form == "coupled" and row.direction is not None
    trust = row.trust(section) if row.trust else None
    unstacks = sees_blocks(section, model)
    named = model.clone(scan_blocks=False) if unstacks else model

    def decay_factors(params: optax.Params) -> Any:
        return factors(params, section.weight_decay_rules, "optimizer.weight_decay_rules")

    def rate_factors(params: optax.Params) -> Any:
        own = factors(params, section.learning_rate_rules, "optimizer.learning_rate_rules")
        return jax.tree.map(operator.mul, own, block_factors(params, section.layer_decay, named))

    def decayed(update: jax.Array, param: jax.Array, factor: float) -> jax.Array:
        strength = section.weight_decay * factor
        return update + strength * param if strength else update

    def trusted(update: jax.Array, param: jax.Array, factor: float) -> jax.Array:
        """Apply steps 4 and 5; a trust ratio may depend on the norm of the update without the decay."""
        whole = update if coupled else decayed(update, param, factor)
        if trust is None or not section.weight_decay * factor:
            return whole
        return whole * trust(update, param, 0 if coupled else section.weight_decay * factor)

    def starts(params: optax.Params) -> Any:
        units = factors(params, section.unfreeze_at, "optimizer.unfreeze_at", otherwise=0)
        return jax.tree.map(lambda start: round(start * steps_per_unit), units)

    whole = optax.chain(
        optax.clip_by_global_norm(section.clip_norm) if section.clip_norm else optax.identity(),
        optax.masked(optax.adaptive_grad_clip(section.agc), partial(outside_head, head=model.head))
        if section.agc
        else optax.identity(),
        _with_params(decayed, decay_factors) if coupled else optax.identity(),
        row.direction(section) if row.direction else optax.identity(),
        _with_params(trusted, decay_factors),
        _with_params(lambda update, param, factor: update * factor, rate_factors),
        optax.scale_by_learning_rate(learning_rate),
        _from_step(starts) if section.unfreeze_at else optax.identity(),
        row.finish(section) if row.finish else optax.identity(),
    )
    whole = row.wrap(section, whole, learning_rate) if row.wrap else whole
    return _on_unstacked(whole) if unstacks else whole


def sees_blocks(section: Optimizer, model: Network) -> bool:
    """Return whether the optimizer must take apart the stacked blocks of a network with `scan_blocks`.

    If so, it works on the parameters of the network without `scan_blocks`, and its state has their layout. This is
    needed for norms and ranks of layers, and for rules over names. It costs a copy of parameters, gradients and
    updates. All other optimizers work on the stacked parameters, element by element.
    """
    if not getattr(model, "scan_blocks", False):
        return False
    rules = section.learning_rate_rules or section.unfreeze_at or section.layer_decay < 1
    same_decay = section.weight_decay_rules == Optimizer().weight_decay_rules
    return bool(not OPTIMIZERS[section.name].elementwise or section.agc or rules or not same_decay)


def parameter_average(
    section: Optimizer, model: Network
) -> Callable[[optax.OptState, optax.Params], optax.Params] | None:
    """Return `OptimizerRow.average` for the parameters of the network, stacked or not; None without one."""
    average = OPTIMIZERS[section.name].average
    if average is None or not sees_blocks(section, model):
        return average

    def of_stacked(state: optax.OptState, params: optax.Params) -> optax.Params:
        return _stacked(average(state, _unstacked(params)))

    return of_stacked


def updates_made(opt_state: Any) -> int:
    """Return the number of updates that an optimizer has made: the step of its learning rate."""
    counts = optax.tree_utils.tree_get_all_with_path(opt_state, "count")
    return max(int(count.addressable_data(0)) for _, count in counts)


def _on_unstacked(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the transformation for stacked parameters, from one for the parameters of separate blocks."""

    def init(params: optax.Params) -> optax.OptState:
        return inner.init(_unstacked(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple:
        updates, state = inner.update(_unstacked(updates), state, _unstacked(params))
        return _stacked(updates), state

    return optax.GradientTransformation(init, update)


def _unstacked(params: optax.Params) -> Any:
    return unstack_blocks({"params": params})["params"]


def _stacked(params: optax.Params) -> Any:
    return stack_blocks({"params": params})["params"]


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
