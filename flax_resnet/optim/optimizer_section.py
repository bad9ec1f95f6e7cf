"""Settings of the optimizer."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import optax

from flax_resnet.settings import (
    ANY,
    BETAS,
    PARAMETER_RULES,
    UNSET,
    Registry,
    Row,
    Section,
    above,
    at_least,
    choice,
    one_of,
    setting,
    within,
)


class TrustRatio(Protocol):
    """The trust ratio of a layer."""

    def __call__(self, update: jax.Array, param: jax.Array, decay: float) -> jax.Array:
        """Return the factor on ``update + decay param``, a scalar.

        Args:
          update: the update of the layer before decoupled weight decay.
          param: the weights of the layer.
          decay: the coefficient of the weight decay that is added to `update`; 0 if the gradient includes it.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerRow(Row):
    """One optimizer; `make_optimizer` adds the parts that all optimizers share.

    Attributes:
      direction: settings -> the transformation that scales the gradient, or None if the direction is the gradient.
      elementwise: whether each element of the update depends only on the same element of gradients and parameters,
        and not on the shape, rank or norm of a layer. Such an optimizer also works on stacked layers.
      trust: settings -> the trust ratio of a layer, which scales its update, or None. It applies only to parameters
        with weight decay.
      finish: settings -> the transformation after the learning rate, or None: momentum that includes the learning
        rate, as in TensorFlow.
      wrap: (settings, all of the above, learning rate by update) -> the whole optimizer, or None.
      average: (state of the optimizer, parameters) -> the parameters to evaluate, or None if these are the
        parameters themselves. They take the place of the moving average.
    """

    direction: Callable[["Optimizer"], optax.GradientTransformation] | None
    elementwise: bool = False
    trust: Callable[["Optimizer"], TrustRatio] | None = None
    finish: Callable[["Optimizer"], optax.GradientTransformation] | None = None
    wrap: (
        Callable[
            ["Optimizer", optax.GradientTransformation, optax.Schedule],
            optax.GradientTransformation,
        ]
        | None
    ) = None
    average: Callable[[optax.OptState, optax.Params], optax.Params] | None = None


OPTIMIZERS: Registry[OptimizerRow] = Registry("flax_resnet.optim.optimizers")


@dataclasses.dataclass(frozen=True)
class Optimizer(Section):
    """The optimizer; `make_optimizer` gives the order of its operations.

    Rules are `(regex, factor)` pairs over parameter names, such as layer1_0/conv1/kernel. The first match sets the
    factor of a parameter; without a match it is 1.
    """

    name: str = choice("sgd", OPTIMIZERS, "name of the optimizer")
    learning_rate: float = setting(
        0.1, above(0), "peak learning rate, reached at the end of the warm-up"
    )
    momentum: float = setting(UNSET, within(0, 0.9999), "momentum coefficient")
    nesterov: bool = setting(UNSET, ANY, "use Nesterov momentum")
    betas: tuple = setting(
        UNSET, BETAS, "decay rates of the running means of the gradient and of its square"
    )
    rms_decay: float = setting(
        UNSET, within(0, 0.9999), "decay rate of the mean of squared gradients"
    )
    epsilon: float = setting(UNSET, above(0), "added to divisors in the optimizer")
    trust_coefficient: float = setting(
        UNSET, above(0), "norm of update / norm of weights, at learning rate 1"
    )
    weight_decay: float = setting(1e-4, at_least(0), "weight decay coefficient")
    weight_decay_form: str = setting(
        UNSET,
        one_of("coupled", "decoupled"),
        "coupled adds weight decay to the gradient; decoupled adds it to the update, before the multiplication by "
        "the learning rate",
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
