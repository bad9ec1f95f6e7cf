"""A ResNet in plain linen: the network that JAX users write without this package.

It uses `nn.Conv`, `nn.BatchNorm` and `nn.max_pool` with SAME padding, as in the flax ImageNet example, and no
optimizations. It covers the networks of the benchmarks: basic and bottleneck blocks, grouped convolutions,
squeeze-and-excitation, and both stems. Names and weights are not compatible with other implementations.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Block(nn.Module):
    """A basic block, or a bottleneck."""

    features: int
    stride: int
    bottleneck: bool
    groups: int
    width: int
    attention: bool
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [N, H, W, C] to [N, H / stride, W / stride, channels]."""
        strides = (self.stride, self.stride)
        if self.bottleneck:
            y = nn.relu(self.norm()(self.conv(self.width, (1, 1))(x)))
            y = self.conv(self.width, (3, 3), strides, feature_group_count=self.groups)(y)
            y = self.conv(4 * self.features, (1, 1))(nn.relu(self.norm()(y)))
        else:
            y = nn.relu(self.norm()(self.conv(self.features, (3, 3), strides)(x)))
            y = self.conv(self.features, (3, 3))(y)
        y = self.norm(scale_init=nn.initializers.zeros)(y)
        if self.attention:
            gate = nn.relu(nn.Dense(y.shape[-1] // 16)(y.mean((1, 2))))
            y = y * nn.sigmoid(nn.Dense(y.shape[-1])(gate))[:, None, None, :]
        if x.shape != y.shape:
            x = self.norm()(self.conv(y.shape[-1], (1, 1), strides)(x))
        return nn.relu(x + y)


class PlainResNet(nn.Module):
    """A ResNet that maps images [N, H, W, 3] to logits [N, classes].

    Attributes:
      depths: blocks per stage.
      bottleneck: True for bottleneck blocks, False for basic blocks.
      classes: size of the logits.
      width: channels of the first stage.
      small: whether the stem is a 3x3 convolution without max-pool, for 32 px.
      cardinality: number of groups of the 3x3 convolution in a bottleneck.
      base_width: channels per group of that convolution, for each 64 features of the stage.
      attention: whether every block has squeeze-and-excitation.
      dtype: compute dtype.
    """

    depths: tuple[int, ...]
    bottleneck: bool
    classes: int
    width: int = 64
    small: bool = False
    cardinality: int = 1
    base_width: int = 64
    attention: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map images to float32 logits; in training, also update `batch_stats`."""
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        x = x.astype(self.dtype)
        x = conv(self.width, (3, 3))(x) if self.small else conv(self.width, (7, 7), (2, 2))(x)
        x = nn.relu(norm()(x))
        if not self.small:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, depth in enumerate(self.depths):
            features = self.width * 2**stage
            for number in range(depth):
                x = Block(
                    features,
                    stride=2 if stage and not number else 1,
                    bottleneck=self.bottleneck,
                    groups=self.cardinality,
                    width=features * self.base_width * self.cardinality // 64,
                    attention=self.attention,
                    conv=conv,
                    norm=norm,
                )(x)
        return nn.Dense(self.classes)(x.mean((1, 2)).astype(jnp.float32))


DEEP = (3, 4, 6, 3)
PLAIN_FLAX = {
    "resnet18": PlainResNet((2, 2, 2, 2), False, 1000),
    "resnet50": PlainResNet(DEEP, True, 1000),
    "resnext50_32x4d": PlainResNet(DEEP, True, 1000, cardinality=32, base_width=4),
    "seresnet50": PlainResNet(DEEP, True, 1000, attention=True),
    "resnet18_cifar": PlainResNet((2, 2, 2, 2), False, 10, small=True),
    "resnet20": PlainResNet((3, 3, 3), False, 10, width=16, small=True),
}
