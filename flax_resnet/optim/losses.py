"""The training loss of a batch."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flax_resnet.settings import (
    ANY,
    REQUIRED,
    UNSET,
    WEIGHTS,
    Registry,
    Row,
    Section,
    choice,
    setting,
    within,
)

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossRow(Row):
    """One loss.

    Attributes:
      sum: (logits [N, K], smoothed soft labels [N, K], class weights [1, K], settings) -> sum of the losses of the
        examples, float32 [].
      divisor: (soft labels [N, K], class weights [1, K]) -> divisor of the sum, float32 [].
    """

    sum: Callable[[Array, Array, Array, "Loss"], Array]
    divisor: Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassWeightsRow(Row):
    """One way to weigh the classes.

    Attributes:
      weights: (settings, number of training examples of each class, float64 [K]) -> weights [K]; () for none.
      needs_counts: whether the numbers of examples are used. If not, they may be zeros.
    """

    weights: Callable[["Loss", np.ndarray], Sequence[float] | np.ndarray]
    needs_counts: bool = True


LOSSES: Registry[LossRow] = Registry("flax_resnet.optim.losses")
CLASS_WEIGHTS: Registry[ClassWeightsRow] = Registry(
    "flax_resnet.optim.losses", "CLASS_WEIGHTS_ROWS"
)


@dataclasses.dataclass(frozen=True)
class Loss(Section):
    """The loss that training minimises."""

    name: str = choice("softmax", LOSSES, "name of the loss")
    label_smoothing: float = setting(
        0.0, within(0, 0.99), "share of each label that is spread evenly over all classes"
    )
    class_weights: str = choice("equal", CLASS_WEIGHTS, "weights of the classes in the loss")
    weight_per_class: tuple = setting(
        UNSET, WEIGHTS, "one weight per class, in the order of the classes"
    )
    effective_beta: float = setting(
        UNSET,
        within(0, 0.9999999),
        "beta of the effective number of examples; 0 weighs classes equally, near 1 by the inverse frequency",
    )
    threshold: float = setting(
        UNSET,
        within(0, 1),
        "round soft labels above the threshold to 1, others to 0; 1 to keep them soft",
    )
    sum_classes: bool = setting(UNSET, ANY, "sum the loss over the classes instead of averaging it")


def class_weights(config: Loss, counts: np.ndarray) -> tuple[float, ...]:
    """Return the weights of the classes, one for each logit; () for equal weights.

    Args:
      config: the settings.
      counts: number of training examples of each class, [K]; all 0 if they are unknown. Weights that need them
        are then equal.
    """
    row = CLASS_WEIGHTS[config.class_weights]
    if row.needs_counts and not np.any(counts):
        return ()
    return tuple(map(float, row.weights(config, np.asarray(counts, np.float64))))


def loss_sum(
    logits: Array, targets: Array, config: Loss, class_weights: Sequence[float] = ()
) -> Array:
    """Return the sum of the losses of a batch, float32 []; training minimises this sum / `loss_weight`.

    Args:
      logits: [N, K], float32.
      targets: soft labels [N, K], before label smoothing.
      config: the settings.
      class_weights: K factors on the terms of the classes; () for 1.
    """
    smooth = optax.smooth_labels(targets, config.label_smoothing)
    return LOSSES[config.name].sum(logits, smooth, _row(class_weights, targets), config)


def loss_weight(targets: Array, config: Loss, class_weights: Sequence[float] = ()) -> Array:
    """Return the divisor of `loss_sum`, float32 []; the arguments are those of `loss_sum`."""
    return LOSSES[config.name].divisor(targets, _row(class_weights, targets))


def _row(class_weights: Sequence[float], targets: Array) -> Array:
    """Return the class weights as an array [1, K]."""
    return jnp.asarray(class_weights or jnp.ones(targets.shape[-1]), jnp.float32)[None]


def cross_entropy(logits: Array, targets: Array, weights: Array | float = 1.0) -> Array:
    """Return the softmax cross-entropy ``-sum_k w_k y_k log p_k`` [N] of logits [N, K] and soft labels y [N, K].

    Source: for smoothed labels, Szegedy et al. 2016, "Rethinking the Inception architecture", section 7.
    """
    return optax.softmax_cross_entropy(logits, weights * targets)


def _softmax(logits: Array, targets: Array, weights: Array, config: Loss) -> Array:
    del config
    return cross_entropy(logits, targets, weights).sum()


def _sum_of_weights(targets: Array, weights: Array) -> Array:
    """Return the sum of the class weights of the examples' labels, as in torch's CrossEntropyLoss."""
    return jnp.maximum((weights * targets).sum(), 1e-8)


def _sigmoid(logits: Array, targets: Array, weights: Array, config: Loss) -> Array:
    if config.threshold < 1:
        targets = (targets > config.threshold).astype(targets.dtype)
    terms = weights * optax.sigmoid_binary_cross_entropy(logits, targets)
    return terms.sum() if config.sum_classes else terms.mean(axis=-1).sum()


def _number(targets: Array, weights: Array) -> Array:
    del weights
    return jnp.float32(len(targets))


ROWS = (
    LossRow(
        name="softmax",
        help="softmax cross-entropy over all classes",
        sum=_softmax,
        divisor=_sum_of_weights,
    ),
    LossRow(
        name="sigmoid",
        help="binary cross-entropy of each class",
        uses={"threshold": 1.0, "sum_classes": False},
        sum=_sigmoid,
        divisor=_number,
    ),
)


def _balanced(config: Loss, counts: np.ndarray) -> np.ndarray:
    """Return the weights of scikit-learn's class_weight="balanced"; 1 for classes without examples."""
    del config
    present = counts > 0
    return np.where(present, counts.sum() / (present.sum() * np.maximum(counts, 1)), 1.0)


def _effective_number(config: Loss, counts: np.ndarray) -> np.ndarray:
    """Return weights with a mean of 1 over the classes that have examples; 1 for the others."""
    present, beta = counts > 0, config.effective_beta
    weights = (1 - beta) / (1 - beta ** np.maximum(counts, 1))
    return np.where(present, weights / weights[present].mean(), 1.0)


CLASS_WEIGHTS_ROWS = (
    ClassWeightsRow(
        name="equal",
        help="1 for each class",
        weights=lambda config, counts: (),
        needs_counts=False,
    ),
    ClassWeightsRow(
        name="given",
        help="the numbers of weight_per_class",
        uses={"weight_per_class": REQUIRED},
        weights=lambda config, counts: config.weight_per_class,
        needs_counts=False,
    ),
    ClassWeightsRow(
        name="balanced",
        help="inversely proportional to the number of training examples of each class",
        weights=_balanced,
    ),
    # Cui et al. 2019, "Class-balanced loss based on effective number of samples", section 3.2.
    ClassWeightsRow(
        name="effective_number",
        help="inversely proportional to (1 - effective_beta^n) / (1 - effective_beta) for n examples",
        uses={"effective_beta": 0.999},
        weights=_effective_number,
    ),
)
