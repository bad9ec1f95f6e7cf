"""What training minimises: the loss of a batch."""

import jax
import jax.numpy as jnp
import optax

from flax_resnet.sections import Loss

Array = jax.Array


def batch_loss(logits: Array, targets: Array, config: Loss) -> Array:
    """Returns the mean loss of a batch, float32 [].

    Args:
      logits: [N, K], float32.
      targets: soft labels [N, K], not smoothed.
      config: which loss. Class weights w [K] weigh, with softmax, each example by the weights of its label, and the
        mean is over the weights (torch's CrossEntropyLoss); with sigmoid, each class's term, and the mean is plain.
    """
    weights = jnp.asarray(config.class_weights or jnp.ones(targets.shape[-1]), jnp.float32)[None]
    smooth = optax.smooth_labels(targets, config.label_smoothing)
    if config.name == "softmax":
        weight = (weights * targets).sum()
        return cross_entropy(logits, smooth, weights).sum() / jnp.maximum(weight, 1e-8)
    if config.threshold < 1:
        smooth = (smooth > config.threshold).astype(smooth.dtype)
    terms = weights * optax.sigmoid_binary_cross_entropy(logits, smooth)
    return terms.sum(axis=-1).mean() if config.sum_classes else terms.mean()


def cross_entropy(logits: Array, targets: Array, weights: Array | float = 1.0) -> Array:
    """Softmax cross-entropy ``-sum_k w_k y_k log p_k`` [N] of logits [N, K] and soft labels y [N, K].

    Source: for smoothed labels, Szegedy et al. 2016, "Rethinking the Inception architecture", section 7.
    """
    return optax.softmax_cross_entropy(logits, weights * targets)
