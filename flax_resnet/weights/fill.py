"""Tensors of a file as the variables of a network."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.models.stacking import stack_blocks
from flax_resnet.weights import from_torch


def fill(
    model: nn.Module,
    tensors: dict[str, np.ndarray],
    *,
    initial: Any = None,
    adapt_stem: bool = False,
) -> dict[str, Any]:
    """Returns the variables of a network with these tensors in them, or raises WeightsError.

    Args:
      model: of `create_model`, stack_blocks or not.
      tensors: as `open_weights` reads them.
      initial: variables (unrolled) whose head stays where the tensors have another number of classes;
        None: that is an error.
      adapt_stem: whether the first convolution is adapted to another number of input channels.

    Returns:
      {"params": ..., "batch_stats": ...}, the latter empty without batch normalisation; NumPy arrays.
    """
    whole = unrolled_model(model)
    variables = from_torch(tensors, abstract(whole), initial=initial, adapt_stem=adapt_stem)
    if whole is not model:
        variables = stack_blocks(variables)
    return {"batch_stats": {}, **variables}


def unrolled_model(model: nn.Module) -> nn.Module:
    """Returns the network with its blocks one by one."""
    return model.clone(scan_blocks=False) if getattr(model, "scan_blocks", False) else model


def abstract(model: nn.Module) -> dict[str, Any]:
    """Returns the shapes and dtypes of a network's variables, without allocating them."""
    # Large enough for every pool of AlexNet and VGG; no variable's shape depends on it.
    image = jax.ShapeDtypeStruct((1, 224, 224, model.in_channels), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
