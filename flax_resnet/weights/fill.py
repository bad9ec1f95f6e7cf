"""Convert the tensors of a file to the variables of a network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.models.network import Network
from flax_resnet.models.stacking import stack_blocks
from flax_resnet.weights import from_torch


def fill(
    model: Network,
    tensors: dict[str, np.ndarray],
    *,
    initial: Any = None,
    adapt_stem: bool = False,
) -> dict[str, Any]:
    """Return the variables of a network, filled from tensors.

    Args:
      model: a network from `create_model`, with or without `scan_blocks`.
      tensors: tensors from `open_weights`.
      initial: variables (unstacked) whose head is used if the tensors have another number of classes. If None,
        another number of classes is an error.
      adapt_stem: whether to adapt the first convolution to another number of input channels.

    Returns:
      {"params": ..., "batch_stats": ...} of NumPy arrays; `batch_stats` is empty without batch normalisation.

    Raises:
      WeightsError: the tensors do not fit the network.
    """
    unrolled = unrolled_model(model)
    variables = from_torch(tensors, abstract(unrolled), initial=initial, adapt_stem=adapt_stem)
    if unrolled is not model:
        variables = stack_blocks(variables)
    return {"batch_stats": {}, **variables}


def unrolled_model(model: Network) -> Network:
    """Return the network without `scan_blocks`."""
    return model.clone(scan_blocks=False) if getattr(model, "scan_blocks", False) else model


def abstract(model: Network) -> dict[str, Any]:
    """Return the shapes and dtypes of a network's variables, without allocating them."""
    # 224 px is large enough for every pool of AlexNet and VGG. No variable's shape depends on the size.
    image = jax.ShapeDtypeStruct((1, 224, 224, model.in_channels), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
