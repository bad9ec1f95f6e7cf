"""Stems: the convolutions before the first stage, and the operation that halves the map after them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flax_resnet.models.block_spec import Parts
from flax_resnet.models.layers.pooling import ANTI_ALIAS
from flax_resnet.ops.max_pool import max_pool
from flax_resnet.settings import Registry, Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class StemRow(Row):
    """One stem.

    Attributes:
      layers: convolutions as (kernel size, stride, share of the stem's width).
      pool: name of the operation after the convolutions, unless the network sets another.
      image_size: height and width of the images that the stem is made for, in pixels.
    """

    layers: tuple[tuple[int, int, float], ...]
    pool: str
    image_size: int = 224

    @property
    def stride(self) -> int:
        """The stride of all convolutions together."""
        return math.prod(stride for _, stride, _ in self.layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StemPoolRow(Row):
    """One operation after the stem's convolutions.

    Attributes:
      apply: (network, parts, map [N, H, W, C], train) -> the map after the operation.
      stride: the factor by which the operation reduces height and width.
      takes_filter: whether a filter against aliasing can replace the operation's stride.
    """

    apply: Callable[[Any, Parts, jax.Array, bool], jax.Array]
    stride: int = 2
    takes_filter: bool = True


STEMS: Registry[StemRow] = Registry(__name__, "STEM_ROWS")
STEM_POOLS: Registry[StemPoolRow] = Registry(__name__, "STEM_POOL_ROWS")


def apply_stem(net: Any, parts: Parts, x: jax.Array, train: bool) -> jax.Array:
    """Apply the stem's convolutions; call it within the network's `__call__`.

    In a pre-activation network, the first block applies the last normalisation.
    """
    layers = STEMS[net.stem].layers
    for position, (size, stride, share) in enumerate(layers):
        last = position == len(layers) - 1
        # torch's indices include the norms and activations between convolutions: conv1.0, conv1.3, conv1.6.
        name = "conv1" if len(layers) == 1 else f"conv1_{3 * position}"
        x = parts.conv(int(net.stem_channels * share), size, stride=stride, name=name)(x)
        if not last:
            x = parts.norm(name=f"conv1_{3 * position + 1}")(x, train=train)
        elif not net.is_preact:
            x = parts.norm(name="bn1")(x, train=train)
    return x


def _max(net: Any, parts: Parts, x: jax.Array, train: bool) -> jax.Array:
    del parts, train
    return ANTI_ALIAS[net.anti_alias].max_pool(x)


def _max_zero(net: Any, parts: Parts, x: jax.Array, train: bool) -> jax.Array:
    del net, parts, train
    return max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), size=3, stride=2)


def _conv(net: Any, parts: Parts, x: jax.Array, train: bool) -> jax.Array:
    filtered = parts.anti_alias
    x = parts.conv(net.stem_channels, 3, stride=1 if filtered else 2, name="maxpool_0")(x)
    x = parts.anti_alias(x, stride=2) if filtered else x
    return parts.norm(name="maxpool_2" if filtered else "maxpool_1")(x, train=train)


def _none(net: Any, parts: Parts, x: jax.Array, train: bool) -> jax.Array:
    del net, parts, train
    return x


STEM_ROWS = (
    StemRow(name="imagenet", help="7x7 of stride 2, max pool", layers=((7, 2, 1.0),), pool="max"),
    StemRow(
        name="deep",
        help="three 3x3, the first of stride 2, max pool (ResNet-C and D)",
        layers=((3, 2, 0.5), (3, 1, 0.5), (3, 1, 1.0)),
        pool="max",
    ),
    StemRow(
        name="tiered",
        help="as deep, with fewer channels in the first 3x3 (timm's ResNet-T)",
        layers=((3, 2, 0.375), (3, 1, 0.5), (3, 1, 1.0)),
        pool="max",
    ),
    StemRow(
        name="cifar",
        help="3x3 of stride 1, no pool",
        layers=((3, 1, 1.0),),
        pool="none",
        image_size=32,
    ),
)
STEM_POOL_ROWS = (
    StemPoolRow(name="max", help="3x3 max pool", apply=_max),
    StemPoolRow(
        name="max_zero",
        help="3x3 max pool, padded with zeros that can be the maximum (BiT)",
        apply=_max_zero,
        takes_filter=False,
    ),
    StemPoolRow(name="conv", help="normalised 3x3 convolution", apply=_conv),
    StemPoolRow(name="none", help="no operation", apply=_none, stride=1),
)
