"""Grad-CAM: which parts of an image speak for a class."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_resnet.errors import ConfigError
from flax_resnet.models.last_map import LastMap
from flax_resnet.models.network import Network

EPSILON = 1e-7  # as in pytorch-grad-cam; a map of one value becomes 0


def grad_cam(model: Network, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
    """Compute the Grad-CAM heat map of a class for each image, on the last feature map A before pooling.

    ``L = relu(sum_k alpha_k A^k)``, where ``alpha_k`` is the mean over positions of ``d y_c / d A^k``, and ``y_c``
    is the logit of class c, before softmax (equations 1 and 2). Each map is then scaled to [0, 1] by its own
    minimum and maximum, resized to the images' height and width (bilinear, half-pixel centres), and scaled again.
    So values compare positions of one image, not images.

    Args:
      model: a network with a head.
      variables: its variables; folded batch normalisation gives the same map.
      images: normalised images, float [N, H, W, C].
      classes: int [N], the class of each map.

    Returns:
      float32 [N, H, W], from 0 to 1; 0 everywhere for a map of one value, such as one without positive evidence.

    Raises:
      ConfigError: the network has no head, or no map before a pooling.

    Source: Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep networks via gradient-based
    localization", section 3; the scaling is that of the package pytorch-grad-cam.
    """
    if not model.num_classes:
        raise ConfigError(
            "has no head: Grad-CAM needs the logit of a class",
            key="model",
            value=type(model).__name__,
            allowed="a network with num_classes above 0",
        )

    def scores(offset: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Return the sum of the classes' logits, and the last map, to which `offset` is added."""
        maps: list[jax.Array] = []

        def record(call: Any, args: tuple, kwargs: dict, context: Any) -> Any:
            result = call(*args, **kwargs)
            if isinstance(context.module, LastMap):
                result = result if offset is None else result + offset
                maps.append(result)
            return result

        with nn.intercept_methods(record):
            logits = model.apply(variables, images, train=False)
        if len(maps) != 1:
            raise ConfigError(
                f"has {len(maps)} maps before a pooling: Grad-CAM needs one",
                key="model",
                value=type(model).__name__,
            )
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum(), maps[0]

    shape = jax.eval_shape(lambda: scores(None)[1])
    # The gradient stops at the last map: only pooling and head are differentiated.
    gradient, last = jax.grad(scores, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    weights = gradient.astype(jnp.float32).mean(axis=(1, 2), keepdims=True)
    evidence = nn.relu((weights * last.astype(jnp.float32)).sum(axis=-1))
    size = (len(images), *images.shape[1:3])
    return _scaled(jax.image.resize(_scaled(evidence), size, "linear", antialias=False))


def _scaled(maps: jax.Array) -> jax.Array:
    """Scale each map [N, H, W] to [0, 1] by its minimum and maximum."""
    shifted = maps - maps.min(axis=(1, 2), keepdims=True)
    return shifted / (EPSILON + shifted.max(axis=(1, 2), keepdims=True))
