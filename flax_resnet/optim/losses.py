"""What training minimises: the loss of a batch."""

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
    """What training minimises."""

    name: str = setting(
        "softmax",
        one_of("softmax", "sigmoid"),
        "cross-entropy over all classes, or binary cross-entropy of each",
    )
    label_smoothing: float = setting(0.0, within(0, 0.99), "share of the label spread over all")
    class_weights: tuple = setting(
        (), CLASS_WEIGHTS, "one per class, in their order; none for equal"
    )
    threshold: float = setting(
        1.0,
        within(0, 1),
        "for sigmoid: soft labels above it count as 1, others as 0; 1 for as they are",
    )
    sum_classes: bool = setting(False, ANY, "for sigmoid: the sum over the classes, not the mean")


Array = jax.Array


def loss_sum(logits: Array, targets: Array, config: Loss) -> Array:
    """Returns the sum of the losses of a batch, float32 []; over `loss_weight`, it is what training minimises.

    Args:
      logits: [N, K], float32.
      targets: soft labels [N, K], not smoothed.
      config: which loss. Class weights w [K] weigh each class's term.
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
    """Returns what the sum of a batch's losses is divided by, float32 [].

    With softmax the weights of the examples, each that of its label (torch's CrossEntropyLoss): N where all
    classes weigh 1; with sigmoid, N.
    """
    if config.name == "softmax":
        return jnp.maximum((_class_weights(targets, config) * targets).sum(), 1e-8)
    return jnp.float32(len(targets))


def _class_weights(targets: Array, config: Loss) -> Array:
    return jnp.asarray(config.class_weights or jnp.ones(targets.shape[-1]), jnp.float32)[None]


def cross_entropy(logits: Array, targets: Array, weights: Array | float = 1.0) -> Array:
    """Softmax cross-entropy ``-sum_k w_k y_k log p_k`` [N] of logits [N, K] and soft labels y [N, K].

    Source: for smoothed labels, Szegedy et al. 2016, "Rethinking the Inception architecture", section 7.
    """
    return optax.softmax_cross_entropy(logits, weights * targets)
