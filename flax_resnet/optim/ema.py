"""The running mean of the weights, kept beside them, evaluated with them, and what `load` then returns."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flax_resnet.settings import (
    ANY,
    at_least,
    setting,
    within,
)


@dataclasses.dataclass(frozen=True)
class Ema:
    """A running mean of the weights, evaluated beside them, and what `load` returns."""

    decay: float = setting(
        0.0, within(0, 0.999999), "share of the mean that a step leaves; 0 for no mean"
    )
    warmup: bool = setting(True, ANY, "at most (1 + step) / (10 + step) of it, in the beginning")
    decay_power: float = setting(
        0.0,
        at_least(0),
        "power of the share of the run done, by which decay is multiplied; 0 for 1",
    )
    lookahead: int = setting(
        0,
        at_least(0),
        "steps after which the mean is moved, and the weights go on from it; 0 for a mean of every step that "
        "only watches",
    )
    bn_batches: int = setting(
        0,
        at_least(0),
        "training batches from which its batch statistics are measured before it is used; 0 averages them "
        "as the weights",
    )


Variables = dict[str, Any]


def start(variables: Variables, section: Ema) -> Variables:
    """Returns the mean before the first step: the variables themselves, copied; {} where none is kept."""
    return jax.tree.map(jnp.copy, variables) if section.decay else {}


def advance(
    ema: Variables, variables: Variables, step: jax.Array, section: Ema, total_steps: int
) -> tuple[Variables, Variables]:
    """Returns the mean after a step, ``d ema + (1 - d) variables``, and the variables to go on from.

    These are the same but with `lookahead`: every so many steps the variables become the mean, which stands still
    in between.

    Args:
      ema: {"params", "batch_stats"}, or {}.
      variables: the same after the update.
      step: int32 [], 1 after the first update.
      section: d is its `decay`, with its `warmup` at most (1 + step) / (10 + step), so that the first weights
        are soon forgotten, and times (step / total_steps) to the power of its `decay_power`. Statistics that are
        recalibrated stay as they are.
      total_steps: of the run.

    Source: lookahead, Zhang et al. 2019, "Lookahead optimizer: k steps forward, 1 step back", algorithm 1; with a
    decay that rises, Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.4.
    """
    if not ema:
        return ema, variables
    decay = jnp.float32(section.decay)
    if section.warmup:
        decay = jnp.minimum(decay, (1 + step) / (10 + step))
    if section.decay_power:
        decay = decay * jnp.minimum(step / total_steps, 1) ** section.decay_power
    mixed = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, variables)
    if section.bn_batches:
        mixed = {**mixed, "batch_stats": ema["batch_stats"]}
    if not section.lookahead:
        return mixed, variables
    returns = step % section.lookahead == 0

    def chosen(then: Variables, otherwise: Variables) -> Variables:
        return jax.tree.map(lambda a, b: jnp.where(returns, a, b), then, otherwise)

    return chosen(mixed, ema), chosen(mixed, variables)
