"""The residual blocks: each adds a shortcut to what two or three convolutions make of its input."""

from typing import Any

import flax.linen as nn
import jax

Array = jax.Array


class BasicBlock(nn.Module):
    """Two 3x3 convolutions. Source: He et al. 2016, figure 5, left.

    Attributes:
      width: channels of the convolutions, and of the output (expansion 1).
      stride: of the first 3x3.
      project: whether the shortcut is a 1x1 convolution. Told, not guessed from shapes: a strided
        block of constant width on a 1x1 map changes no shape, yet needs its projection.
      conv: convolution module, called with (features, size, stride, name).
      norm: normalisation module; called with `train`.
      last_scale_init: initialiser of the scale of the last normalisation.
    """

    width: int
    stride: int
    project: bool
    conv: Any
    norm: Any
    last_scale_init: Any
    expansion = 1

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [N, H, W, C] to [N, H / stride, W / stride, width]."""
        shortcut = _shortcut(self, x, self.width, train)
        y = self.conv(self.width, 3, self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.width, 3, name="conv2")(y)
        y = self.norm(name="bn2", scale_init=self.last_scale_init)(y, train=train)
        return nn.relu(y + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with the stride in the 3x3 ("v1.5"). Source: He et al. 2016, figure 5, right.

    Attributes are those of `BasicBlock`; the output has 4 x width channels.
    """

    width: int
    stride: int
    project: bool
    conv: Any
    norm: Any
    last_scale_init: Any
    expansion = 4

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [N, H, W, C] to [N, H / stride, W / stride, 4 width]."""
        features = self.width * self.expansion
        shortcut = _shortcut(self, x, features, train)
        y = self.conv(self.width, 1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.width, 3, self.stride, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, train=train))
        y = self.conv(features, 1, name="conv3")(y)
        y = self.norm(name="bn3", scale_init=self.last_scale_init)(y, train=train)
        return nn.relu(y + shortcut)


def _shortcut(block: nn.Module, x: Array, features: int, train: bool) -> Array:
    """Identity, or torchvision's `downsample`: 1x1 convolution and normalisation (option B)."""
    if not block.project:
        return x
    y = block.conv(features, 1, block.stride, name="downsample_conv")(x)
    return block.norm(name="downsample_bn")(y, train=train)


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}
