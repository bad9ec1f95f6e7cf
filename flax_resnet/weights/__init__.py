"""Convert tensors of torchvision, timm, Hugging Face and BiT to Flax variables and back; builds no model."""

from flax_resnet.weights.catalog import Pretrained, find, from_config, imagenet_classes
from flax_resnet.weights.class_names import (
    ClassMatch,
    is_numbered,
    match_classes,
    match_logits,
)
from flax_resnet.weights.hub import fetch
from flax_resnet.weights.layout_conversion import (
    channels_of,
    classes_of,
    detect,
    from_torch,
    layout_of,
    to_torch,
)
from flax_resnet.weights.tensor_files import read_tensors, write_safetensors

__all__ = [
    "ClassMatch",
    "Pretrained",
    "channels_of",
    "classes_of",
    "detect",
    "fetch",
    "find",
    "from_config",
    "from_torch",
    "imagenet_classes",
    "is_numbered",
    "layout_of",
    "match_classes",
    "match_logits",
    "read_tensors",
    "to_torch",
    "write_safetensors",
]
