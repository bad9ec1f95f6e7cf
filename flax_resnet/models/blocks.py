"""Residual blocks: each adds a shortcut to a branch of two or three convolutions.

resnet.py builds the `BlockSpec` of each block, and the `Parts` that they share.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flax_resnet.models.block_spec import BlockSpec, Parts
from flax_resnet.models.layers.convolution import Array
from flax_resnet.models.layers.dropout import Dropout, drop
from flax_resnet.models.shortcuts import SHORTCUTS
from flax_resnet.ops.dispatch import gradient_fusion_barrier
from flax_resnet.settings import Registry, Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockRow(Row):
    """One kind of block.

    Attributes:
      module: the block, called with (spec, parts, name=).
      channels: (network, width of the stage) -> output channels of each convolution.
      is_preact: whether normalisation and activation come before the convolutions.
      is_grouped: whether `cardinality` and `base_width` apply to its 3x3, and `channels` follows them.
      starts_with_1x1: whether its stride can be in a 1x1 before the 3x3.
      takes_filter: whether a filter against aliasing can replace the stride of its 3x3.
      takes_shortcut_size: whether its projection can have another kernel size.
    """

    module: type[nn.Module]
    channels: Callable[[Any, int], tuple[int, ...]]
    is_preact: bool = False
    is_grouped: bool = False
    starts_with_1x1: bool = False
    takes_filter: bool = False
    takes_shortcut_size: bool = False


BLOCKS: Registry[BlockRow] = Registry(__name__)


class Block(nn.Module):
    """Base class of all blocks.

    Blocks are called with the map and `train`. If blocks are scanned or rates change over time, the float32 scalars
    `drop_path` and `dropout` override the rates of `spec` and `parts`.
    """

    spec: BlockSpec
    parts: Parts

    def _branch_input(self, x: Array) -> Array:
        """Return x for the residual branch. Its gradient is added to that of a strided projection of x."""
        strided = self.spec.project and self.spec.stride > 1
        return gradient_fusion_barrier(x, "gpu") if strided else x

    def _dropped(self, x: Array, train: bool, rate: Array | None) -> Array:
        return Dropout(self.parts.dropout)(x, train, rate)

    def _strided_3x3(
        self, x: Array, features: int, number: int, train: bool, *, stride: int, groups: int = 1
    ) -> Array:
        """Apply conv, norm and activation with a stride, or at stride 1 followed by a low-pass filter."""
        spec, parts = self.spec, self.parts
        filtered = parts.anti_alias and (spec.stride > 1 or spec.first_dilation != spec.dilation)
        x = parts.conv(
            features,
            3,
            stride=1 if filtered else stride,
            dilation=spec.first_dilation,
            groups=groups,
            name=f"conv{number}",
        )(x)
        x = parts.norm(name=f"bn{number}")(x, train=train)
        return parts.anti_alias(x, stride=spec.stride) if filtered else x

    def _attended(self, y: Array, means: Array | None = None) -> Array:
        """Apply channel attention to the residual branch y. Source: Hu et al. 2018, figure 3.

        Args:
          y: [N, H, W, C].
          means: its means over H and W, [N, C], if they are known.
        """
        if not self.parts.attention:
            return y
        return self.parts.attention(self.spec.nominal, name="se")(y, means)

    def _sum(self, x: Array, y: Array, train: bool, drop_path: Array | None) -> Array:
        """Add the residual branch y, dropped at random for some examples, to the shortcut x."""
        if not SHORTCUTS[self.parts.shortcut].is_added:
            return y
        if train and (self.spec.drop_path or drop_path is not None):
            rate = jnp.asarray(self.spec.drop_path if drop_path is None else drop_path, jnp.float32)
            y = drop(self.make_rng("dropout"), y, rate, (y.shape[0], 1, 1, 1))
        return y + x


class BasicBlock(Block):
    """Two 3x3 convolutions. Source: He et al. 2016, figure 5, left."""

    @nn.compact
    def __call__(
        self, x: Array, train: bool, drop_path: Array | None = None, dropout: Array | None = None
    ) -> Array:
        """Map [N, H, W, C] to [N, H / stride, W / stride, channels]."""
        first, features = self.spec.channels
        y = self._branch_input(x)
        y = self._strided_3x3(y, first, 1, train, stride=self.spec.stride)
        y = self._dropped(y, train, dropout)
        y = self.parts.conv(features, 3, dilation=self.spec.dilation, name="conv2")(y)
        y = self.parts.norm(name="bn2", **self.parts.last)(y, train=train)
        return _activated_sum(self, x, y, train, drop_path)


class Bottleneck(Block):
    """Convolutions 1x1, 3x3 and 1x1, with the stride in the 3x3 unless `stride_first`.

    Source: He et al. 2016, figure 5, right; grouped, Xie et al. 2017, figure 3c.
    """

    @nn.compact
    def __call__(
        self, x: Array, train: bool, drop_path: Array | None = None, dropout: Array | None = None
    ) -> Array:
        """Map [N, H, W, C] to [N, H / stride, W / stride, channels]."""
        first, middle, features = self.spec.channels
        strides = (self.spec.stride, 1) if self.parts.stride_first else (1, self.spec.stride)
        y = self._branch_input(x)
        y = self.parts.conv(first, 1, stride=strides[0], name="conv1")(y)
        y = self.parts.norm(name="bn1")(y, train=train)
        groups = self.parts.cardinality
        y = self._strided_3x3(y, middle, 2, train, stride=strides[1], groups=groups)
        y = self._dropped(y, train, dropout)
        pools = bool(self.parts.attention)
        y, means = self.parts.conv_norm(
            y, train, ("conv3", features), "bn3", pools=pools, **self.parts.last
        )
        return _activated_sum(self, x, y, train, drop_path, means)


def _activated_sum(
    block: Block,
    x: Array,
    y: Array,
    train: bool,
    drop_path: Array | None,
    means: Array | None = None,
) -> Array:
    """Apply attention to the branch y, add the shortcut, and activate the sum."""
    y = block._attended(y, means)
    shortcut = SHORTCUTS[block.parts.shortcut]
    x = shortcut.apply(block.spec, block.parts, x, train) if block.spec.project else x
    return block.parts.act_of_sum(block._sum(x, y, train, drop_path))


class PreactBasic(Block):
    """Normalisation and activation before each of two 3x3 convolutions.

    Source: He et al. 2016, "Identity mappings in deep residual networks", figure 4e.
    """

    @nn.compact
    def __call__(
        self, x: Array, train: bool, drop_path: Array | None = None, dropout: Array | None = None
    ) -> Array:
        """Map [N, H, W, C] to [N, H / stride, W / stride, channels]."""
        spec, parts = self.spec, self.parts
        first, features = spec.channels
        activated = parts.norm(name="norm1")(x, train=train)
        y = parts.conv(first, 3, stride=spec.stride, dilation=spec.first_dilation, name="conv1")(
            activated
        )
        y = self._dropped(parts.norm(name="norm2")(y, train=train), train, dropout)
        y = parts.conv(features, 3, dilation=spec.dilation, name="conv2", **parts.last_conv)(y)
        return _preact_sum(self, x, activated, y, train, drop_path)


class PreactBottleneck(Block):
    """Normalisation and activation before each of 1x1, 3x3 and 1x1; the stride is in the 3x3.

    Source: He et al. 2016, "Identity mappings in deep residual networks", section 4.1.
    """

    @nn.compact
    def __call__(
        self, x: Array, train: bool, drop_path: Array | None = None, dropout: Array | None = None
    ) -> Array:
        """Map [N, H, W, C] to [N, H / stride, W / stride, channels]."""
        spec, parts = self.spec, self.parts
        first, middle, features = spec.channels
        activated = parts.norm(name="norm1")(x, train=train)
        stride = spec.stride if parts.stride_first else 1
        y = parts.conv(first, 1, stride=stride, name="conv1")(activated)
        y = parts.norm(name="norm2")(y, train=train)
        y = parts.conv(
            middle,
            3,
            stride=1 if parts.stride_first else spec.stride,
            dilation=spec.first_dilation,
            groups=parts.cardinality,
            name="conv2",
        )(y)
        y = self._dropped(parts.norm(name="norm3")(y, train=train), train, dropout)
        y = parts.conv(features, 1, name="conv3", **parts.last_conv)(y)
        return _preact_sum(self, x, activated, y, train, drop_path)


def _preact_sum(
    block: Block, x: Array, activated: Array, y: Array, train: bool, drop_path: Array | None
) -> Array:
    """Add the attended branch y to the shortcut: the identity, or a projection of the activated input."""
    y = block._attended(y)
    shortcut = SHORTCUTS[block.parts.shortcut]
    x = shortcut.apply_preact(block.spec, block.parts, x, activated) if block.spec.project else x
    return block._sum(x, y, train, drop_path)


def _two_channels(net: Any, width: int) -> tuple[int, ...]:
    return width // net.reduce_first, width


def _three_channels(net: Any, width: int) -> tuple[int, ...]:
    middle = int(width * net.base_width / 64) * net.cardinality
    return middle // net.reduce_first, middle, 4 * width


ROWS = (
    BlockRow(
        name="basic",
        help="two 3x3",
        module=BasicBlock,
        channels=_two_channels,
        takes_filter=True,
        takes_shortcut_size=True,
    ),
    BlockRow(
        name="bottleneck",
        help="1x1, 3x3 and 1x1",
        module=Bottleneck,
        channels=_three_channels,
        is_grouped=True,
        starts_with_1x1=True,
        takes_filter=True,
        takes_shortcut_size=True,
    ),
    BlockRow(
        name="preact_basic",
        help="two 3x3, each after normalisation and activation",
        module=PreactBasic,
        channels=_two_channels,
        is_preact=True,
    ),
    BlockRow(
        name="preact_bottleneck",
        help="1x1, 3x3 and 1x1, each after normalisation and activation",
        module=PreactBottleneck,
        channels=_three_channels,
        is_preact=True,
        is_grouped=True,
        starts_with_1x1=True,
    ),
)
