"""Write the weights of a network as .safetensors in torch's layout, for timm and torchvision."""

import pathlib

import jax

from flax_resnet.inference.classifier import Classifier
from flax_resnet.models.stacking import unstack_blocks
from flax_resnet.weights import layout_of, to_torch, write_safetensors
from flax_resnet.weights.layouts import LAYOUTS


def write_weights(classifier: Classifier, file: pathlib.Path) -> str:
    """Write the weights of a network.

    Args:
      classifier: the network.
      file: ends in ``.safetensors``; an existing file is replaced.

    Returns:
      A description: the number of tensors, and whose names they have.

    Raises:
      WeightsError: the names of torch's layouts do not cover the network.
      OutputError: the file cannot be written.
    """
    variables = unstack_blocks(jax.device_get(classifier.variables))
    tensors = to_torch(variables)
    write_safetensors(file, tensors, {"format": "pt"})
    title = LAYOUTS[layout_of(variables)].title
    return f"{len(tensors)} tensors of {classifier.config.model.name} as {title} names them"
