"""The networks that compare.py compares, by label, and their torch side; needs the extra `parity`."""

import contextlib
from collections import OrderedDict
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import timm
import torch
import torchvision
from golden.pairs import Pair
from timm.layers import BatchNormAct2d, StdConv2d, create_conv2d
from timm.models.resnetv2 import ResNetV2
from torch import nn

from benchmarks.speed.torch_networks import cifar_resnet

TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2", "alexnet"),
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
)
CIFAR = {
    "resnet20, option A": Pair("cifar_resnet", {"shortcut": "pad"}, "resnet20", {}, 32),
    "resnet20, option B": Pair("cifar_resnet", {}, "resnet20", {"shortcut": "projection"}, 32),
    "preact164": Pair("cifar_preact", {}, "preact164", {}, 32),
    "wrn16_4": Pair("cifar_wide", {}, "wrn16_4", {}, 32),
}


def timm_names() -> list[str]:
    """Returns all names of timm's resnet.py and resnetv2.py."""
    return sorted({*timm.list_models(module="resnet"), *timm.list_models(module="resnetv2")})


def option_pairs() -> dict[str, Pair]:
    """Returns networks with options that timm has too."""
    pairs = {}
    for name in ("resnet50", "resnet50d", "resnetv2_50d", "senet154"):
        for stride in (8, 16):
            options = {"output_stride": stride}
            pairs[f"{name}, output_stride={stride}"] = Pair(name, options, name, options)
    for name in ("resnet50", "resnetv2_50"):
        for channels in (1, 4):
            label = f"{name}, in_channels={channels}"
            options = {"in_channels": channels}
            pairs[label] = Pair(name, {"in_chans": channels}, name, options, channels=channels)
        for pool in ("max", "avgmax"):
            options = {"global_pool": pool}
            pairs[f"{name}, global_pool={pool}"] = Pair(name, options, name, options)
    return pairs


def all_pairs() -> dict[str, Pair]:
    """Returns every pair whose logits are compared, by label."""
    pairs = {name: Pair(name, {}, name, {}) for name in timm_names()}
    for name in TORCHVISION:
        size = 96 if "res" in name else 224
        pairs[f"torchvision/{name}"] = Pair(f"torchvision/{name}", {}, name, {}, size)
    return pairs | CIFAR | option_pairs()


# The torch side


def _cifar_v2(layers: tuple[int, ...], **options: Any) -> nn.Module:
    net = ResNetV2(
        layers,
        (64, 128, 256),
        num_classes=10,
        stem_chs=16,
        conv_layer=create_conv2d,
        norm_layer=BatchNormAct2d,
        **options,
    )
    net.stem = nn.Sequential(OrderedDict(conv=create_conv2d(3, 16, 3)))
    return net


def cifar_preact(*, depth: int = 18) -> nn.Module:
    """Builds the pre-activation network of bottlenecks for 32 px."""
    return _cifar_v2((depth,) * 3)


def cifar_wide(*, depth: int = 2) -> nn.Module:
    """Builds WRN-16-4."""
    return _cifar_v2((depth,) * 3, basic=True, bottle_ratio=1.0)


def bit(**options: Any) -> nn.Module:
    """Builds Big Transfer's network of other depths than timm lets one ask for."""
    return ResNetV2(stem_type="fixed", conv_layer=partial(StdConv2d, eps=1e-8), **options)


BUILDERS = {
    "bit": bit,
    "cifar_resnet": cifar_resnet,
    "cifar_preact": cifar_preact,
    "cifar_wide": cifar_wide,
}


def torch_network(pair: Pair) -> nn.Module:
    """Builds the torch side with the weights that it starts from."""
    if pair.torch in BUILDERS:
        return BUILDERS[pair.torch](**pair.torch_options)
    library, _, name = pair.torch.rpartition("/")
    if library:
        return torchvision.models.get_model(name, weights=None, **pair.torch_options)
    return timm.create_model(name, **pair.torch_options)


def torch_shapes(pair: Pair) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of the state dict, without making one."""
    with torch.device("meta"):
        state = torch_network(pair).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def loaded(pair: Pair, tensors: dict[str, np.ndarray]) -> nn.Module:
    """Builds the torch side around these tensors (it may share their memory).

    Raises:
      RuntimeError: a tensor is missing, left over or of another shape.
    """
    with torch.device("meta"):
        net = torch_network(pair)
    if any(tensor.is_meta for name, tensor in net.named_buffers() if name not in tensors):
        net = torch_network(pair)  # it holds constants that no state dict does
    state = {name: torch.from_numpy(array) for name, array in tensors.items()}
    net.load_state_dict(state, strict=True, assign=True)
    return net.requires_grad_(True).eval()


def to_channels_first(images: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Returns [N, H, W, C] as torch's [N, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(dtype)


def exact() -> contextlib.AbstractContextManager:
    """Keeps float64 where timm's EvoNorm and filter response normalisation would round it to float32."""
    narrow = torch.Tensor.float
    return mock.patch.object(
        torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else narrow(x)
    )


def torch_outputs(net: nn.Module, images: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Returns what the network, cast to `dtype`, makes of [N, H, W, C]."""
    net = net.to(dtype)
    with torch.inference_mode(), exact():
        return net(to_channels_first(images, dtype)).numpy()
