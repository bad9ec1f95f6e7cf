"""Optimizers, composed of Optax transformations."""

import dataclasses
import operator
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from flax_resnet.errors import ConfigError
from flax_resnet.models.network import Network, block_depths
from flax_resnet.settings import (
    ANY,
    BETAS,
    PARAMETER_RULES,
    above,
    at_least,
    one_of,
    setting,
    within,
)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The optimizer; `make_optimizer` gives the order of its operations.

    Rules are `(regex, factor)` pairs over parameter names, such as layer1_0/conv1/kernel. The first match sets the
    factor of a parameter; without a match it is 1.
    """

    name: str = setting(
        "sgd", one_of("sgd", "lars", "lamb", "adamw", "rmsprop", "muon"), "name of the optimizer"
    )
    learning_rate: float = setting(
        0.1, above(0), "peak learning rate, reached at the end of the warm-up"
    )
    momentum: float = setting(
        0.9, within(0, 0.9999), "momentum coefficient; lamb and adamw use betas instead"
    )
    nesterov: bool = setting(False, ANY, "use Nesterov momentum")
    betas: tuple = setting(
        (0.9, 0.999),
        BETAS,
        "for lamb, adamw and muon: decay rates of the running means of the gradient and of its square",
    )
    rms_decay: float = setting(
        0.9, within(0, 0.9999), "for rmsprop: decay rate of the mean of squared gradients"
    )
    epsilon: float = setting(1e-8, above(0), "added to divisors in the optimizer; unused by sgd")
    trust_coefficient: float = setting(
        0.001, above(0), "for lars: norm of update / norm of weights, at learning rate 1"
    )
    weight_decay: float = setting(1e-4, at_least(0), "weight decay coefficient")
    weight_decay_form: str = setting(
        "auto",
        one_of("auto", "coupled", "decoupled"),
        "coupled adds weight decay to the gradient; decoupled adds it to the update, before the multiplication by "
        "the learning rate; auto is coupled for sgd, lars and rmsprop, decoupled for lamb, adamw and muon",
    )
    weight_decay_rules: tuple = setting(
        (("kernel$", 1.0), ("", 0.0)),
        PARAMETER_RULES,
        "(regex, factor) rules for the weight decay of parameters; by default kernels only",
    )
    learning_rate_rules: tuple = setting(
        (), PARAMETER_RULES, "(regex, factor) rules for the learning rate of parameters; 0 freezes"
    )
    unfreeze_at: tuple = setting(
        (),
        PARAMETER_RULES,
        "(regex, start) rules: the learning rate of matching parameters is 0 before start (in schedule.unit)",
    )
    layer_decay: float = setting(
        1.0, within(0.01, 1), "learning rate factor per block, counted back from the head"
    )
    clip_norm: float = setting(
        0.0, at_least(0), "largest global norm of the gradient; 0 for no limit"
    )
    agc: float = setting(
        0.0,
        at_least(0),
        "adaptive gradient clipping: largest gradient norm / weight norm of each unit outside the head; "
        "0 for no limit",
    )


Rules = tuple[tuple[str, float], ...]


class Kind(NamedTuple):
    """The parts of one optimizer; `make_optimizer` adds the parts that all optimizers share.

    Attributes:
      direction: settings -> the transformation that scales the gradient.
      coupled: whether weight decay is coupled by default.
      trust: settings -> the transformation that scales each layer's update by its trust ratio, or None. It applies
        only to parameters with weight decay.
      finish: settings -> the transformation after the learning rate, or None: momentum that includes the learning
        rate, as in TensorFlow.
    """

    direction: Callable[[Optimizer], optax.GradientTransformation]
    coupled: bool
    trust: Callable[[Optimizer], optax.GradientTransformation] | None = None
    finish: Callable[[Optimizer], optax.GradientTransformation] | None = None


def _momentum(section: Optimizer) -> optax.GradientTransformation:
    if not section.momentum:
        return optax.identity()
    return optax.trace(section.momentum, section.nesterov)


def _adam(section: Optimizer) -> optax.GradientTransformation:
    return optax.scale_by_adam(*section.betas, section.epsilon, nesterov=section.nesterov)


def _rms(section: Optimizer) -> optax.GradientTransformation:
    # As in TensorFlow: epsilon is inside the root, and the mean square starts at 1.
    return optax.scale_by_rms(section.rms_decay, section.epsilon, initial_scale=1.0)


def _muon(section: Optimizer) -> optax.GradientTransformation:
    def flattened(params: optax.Params) -> Any:
        convolution = contrib.MuonDimensionNumbers((0, 1, 2), 3)
        return jax.tree.map(lambda leaf: convolution if leaf.ndim == 4 else None, params)

    muon = contrib.muon(
        1.0,
        beta=section.momentum,
        nesterov=section.nesterov,
        adam_b1=section.betas[0],
        adam_b2=section.betas[1],
        eps=section.epsilon,
        muon_weight_dimension_numbers=flattened,
    )
    return optax.chain(muon, optax.scale(-1.0))  # contrib.muon includes the minus sign; undo it


KINDS = {
    # Sutskever et al. 2013, section 2, in PyTorch's form: v = momentum v + g; w -= rate v.
    "sgd": Kind(_momentum, coupled=True),
    # You et al. 2017, "Large batch training of convolutional networks", algorithm 1.
    "lars": Kind(
        lambda section: optax.identity(),
        coupled=True,
        trust=lambda section: optax.scale_by_trust_ratio(
            trust_coefficient=section.trust_coefficient, eps=section.epsilon
        ),
        finish=_momentum,
    ),
    # You et al. 2020, "Large batch optimization for deep learning", algorithm 2.
    "lamb": Kind(_adam, coupled=False, trust=lambda section: optax.scale_by_trust_ratio()),
    # Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2.
    "adamw": Kind(_adam, coupled=False),
    # Tieleman and Hinton 2012, in TensorFlow's form.
    "rmsprop": Kind(_rms, coupled=True, finish=_momentum),
    # Jordan et al. 2024, "Muon", on the kernels of convolutions; Adam on the rest.
    "muon": Kind(_muon, coupled=False),
}


def make_optimizer(
    section: Optimizer, learning_rate: optax.Schedule, model: Network, steps_per_unit: int = 1
) -> optax.GradientTransformation:
    """Return the configured optimizer.

    The operations, in order:

    1. Clip the gradient.
    2. Coupled weight decay: add ``weight_decay w``.
    3. Scale the gradient (`Kind.direction`).
    4. Decoupled weight decay: add ``weight_decay w``.
    5. Scale each layer's update by its trust ratio (lars, lamb).
    6. Multiply by the learning rate and by each parameter's own factor. The result is 0 before the parameter
       unfreezes.
    7. Apply momentum that includes the learning rate (lars, rmsprop).

    Args:
      section: the settings.
      learning_rate: the learning rate by update, from 0.
      model: the network; it names its head and its blocks.
      steps_per_unit: updates in one unit of `unfreeze_at`.

    Raises (from the transformation's `init`):
      ConfigError: a rule matches no parameter, or `layer_decay` is set for a network without numbered blocks.

    Source: adaptive clipping, Brock et al. 2021, "High-performance large-scale image recognition", section 4.1.
    """
    kind = KINDS[section.name]
    coupled = decays_coupled(section)

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
    return optax.chain(
        optax.clip_by_global_norm(section.clip_norm) if section.clip_norm else optax.identity(),
        optax.masked(optax.adaptive_grad_clip(section.agc), partial(outside_head, head=model.head))
        if section.agc
        else optax.identity(),
        decay if coupled else optax.identity(),
        kind.direction(section),
        optax.identity() if coupled else decay,
        optax.masked(kind.trust(section), decays) if kind.trust else optax.identity(),
        _with_params(lambda update, param, factor: update * factor, rate_factors),
        optax.scale_by_learning_rate(learning_rate),
        _from_step(starts) if section.unfreeze_at else optax.identity(),
        kind.finish(section) if kind.finish else optax.identity(),
    )


def updates_made(opt_state: Any) -> int:
    """Return the number of updates that an optimizer has made: the step of its learning rate."""
    counts = optax.tree_utils.tree_get_all_with_path(opt_state, "count")
    return max(int(count.addressable_data(0)) for _, count in counts)


def decays_coupled(section: Optimizer) -> bool:
    """Return whether weight decay is added to the gradient."""
    forms = {"auto": KINDS[section.name].coupled, "coupled": True, "decoupled": False}
    return forms[section.weight_decay_form]


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


def names(params: optax.Params) -> Any:
    """Return a tree of the parameters' names, such as layer1_0/conv1/kernel."""
    return jax.tree.map_with_path(lambda path, _: "/".join(part.key for part in path), params)


def factors(params: optax.Params, rules: Rules, key: str, otherwise: float = 1) -> Any:
    """Return a tree of numbers: the value of the first rule that matches each parameter's name, or `otherwise`.

    Raises:
      ConfigError: a rule matches no parameter that the earlier rules leave.
    """
    matched = [False] * len(rules)

    def factor(name: str) -> float:
        for number, (pattern, value) in enumerate(rules):
            if re.search(pattern, name):
                matched[number] = True
                return float(value)
        return float(otherwise)

    values = jax.tree.map(factor, names(params))
    for (pattern, value), is_matched in zip(rules, matched, strict=True):
        if not is_matched:
            some = ", ".join(sorted(jax.tree.leaves(names(params)))[:3])
            raise ConfigError(
                f"matches no parameter that an earlier rule leaves; names are such as {some}",
                key=key,
                value=(pattern, value),
                cure="list the names with python -m flax_resnet summary",
            )
    return values


def outside_head(params: optax.Params, head: str) -> Any:
    """Return a tree of bools: False for the parameters of the module `head`."""
    return jax.tree.map(lambda name: name.partition("/")[0] != head, names(params))


def block_factors(params: optax.Params, layer_decay: float, model: Network) -> Any:
    """Return a tree of learning rate factors: ``layer_decay^distance``, by the distance from the head.

        module                                         distance
        the head                                       0
        the last block, and normalisation after it     1
        the block before the last                      2
        the stem                                       distance of the first block + 1

    Raises:
      ConfigError: the network has no blocks, or its blocks are stacked (`scan_blocks`).

    Source: Clark et al. 2020, "ELECTRA", appendix A; for images, Bao et al. 2022, "BEiT", appendix.
    """
    if layer_decay == 1:
        return jax.tree.map(lambda leaf: 1.0, params)
    depths = block_depths(model.stages())
    if not depths or getattr(model, "scan_blocks", False):
        why = "with model.scan_blocks=True" if depths else "for a network without residual blocks"
        raise ConfigError(key="optimizer.layer_decay", value=layer_decay, allowed=f"1 {why}")
    most = max(depths.values())

    def factor(name: str) -> float:
        module = name.partition("/")[0]
        return 1.0 if module == model.head else layer_decay ** (most + 1 - depths.get(module, 0))

    return jax.tree.map(factor, names(params))
