"""Grad-CAM by the package pytorch-grad-cam (pip install grad-cam)."""

import numpy as np
import torch
from golden.pairs import Pair
from parity_networks import loaded, to_channels_first, torch_shapes
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from weights_by_name import images_of, tensors_of


def last_layer(net: torch.nn.Module) -> torch.nn.Module:
    """Return the layer whose output is the last map before pooling."""
    names = ("features", "norm", "layer4", "layer3")
    layers = [getattr(net, name) for name in names if hasattr(net, name)]
    return next(layer for layer in layers if not isinstance(layer, torch.nn.Identity))


def torch_grad_cam(
    pair: Pair, classes: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> np.ndarray:
    """Compute the heat map of a class for each of our images, float32 [N, H, W] (computed in `dtype`)."""
    net = loaded(pair, tensors_of(torch_shapes(pair))).to(dtype)
    images = images_of(len(classes), pair.size, pair.channels)
    with GradCAM(net, [last_layer(net)]) as cam:
        targets = [ClassifierOutputTarget(number) for number in classes]
        return cam(to_channels_first(images, dtype), targets)
