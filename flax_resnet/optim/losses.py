"""The training loss of a batch."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from flax_resnet.settings import (
    ANY,
    CLASS_WEIGHTS,
    one_of,
    setting,
    within,
)


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss that training minimises."""

    name: str = setting(
        "softmax",
        one_of("softmax", "sigmoid"),
        "softmax for cross-entropy over all classes; sigmoid for binary cross-entropy of each class",
    )
    label_smoothing: float = setting(
        0.0, within(0, 0.99), "share of each label that is spread evenly over all classes"
    )
    class_weights: tuple = setting(
        (), CLASS_WEIGHTS, "one weight per class, in the order of the classes; () for equal weights"
    )
    threshold: float = setting(
        1.0,
        within(0, 1),
        "for sigmoid: round soft labels above the threshold to 1, others to 0; 1 to keep them soft",
    )
    sum_classes: bool = setting(
        False, ANY, "for sigmoid: sum the loss over the classes instead of averaging it"
    )


Array = jax.Array


def loss_sum(logits: Array, targets: Array, config: Loss) -> Array:
    """Return the sum of the losses of a batch, float32 []; training minimises this sum / `loss_weight`.

    Args:
      logits: [N, K], float32.
      targets: soft labels [N, K], before label smoothing.
      config: the settings. Class weights w [K] multiply the terms of their classes.
    """
    weights = _class_weights(targets, config)
    smooth = optax.smooth_labels(targets, config.label_smoothing)
    if config.name == "softmax":
        return cross_entropy(logits, smooth, weights).sum()
    if config.threshold < 1:
        smooth = (smooth > config.threshold).astype(smooth.dtype)
    terms = weights * optax.sigmoid_binary_cross_entropy(logits, smooth)
    return terms.sum() if config.sum_classes else terms.mean(axis=-1).sum()


def loss_weight(targets: Array, config: Loss) -> Array:
    """Return the divisor of `loss_sum`, float32 [].

    For softmax: the sum of the class weights of the examples' labels, as in torch's CrossEntropyLoss; this is N if
    all class weights are 1. For sigmoid: N.
    """
    if config.name == "softmax":
        return jnp.maximum((_class_weights(targets, config) * targets).sum(), 1e-8)
    return jnp.float32(len(targets))


def _class_weights(targets: Array, config: Loss) -> Array:
    return jnp.asarray(config.class_weights or jnp.ones(targets.shape[-1]), jnp.float32)[None]


def cross_entropy(logits: Array, targets: Array, weights: Array | float = 1.0) -> Array:
    """Return the softmax cross-entropy ``-sum_k w_k y_k log p_k`` [N] of logits [N, K] and soft labels y [N, K].

    Source: for smoothed labels, Szegedy et al. 2016, "Rethinking the Inception architecture", section 7.
    """
    return optax.softmax_cross_entropy(logits, weights * targets)
