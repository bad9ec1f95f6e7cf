"""Residual blocks: each adds a shortcut to a branch of two or three convolutions.

A `BlockSpec` holds what differs between the blocks of a network; `Parts` holds what they share. Both are plain
data, built in resnet.py.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from flax_resnet.models.layers.convolution import Array
from flax_resnet.models.layers.dropout import Dropout, drop
from flax_resnet.models.layers.pooling import average_pool, pad_bottom_right


class BlockSpec(NamedTuple):
    """The shape of one block.

    Attributes:
      kind: a key of `BLOCKS`.
      channels: output channels of each convolution; the last number is the block's output channels.
      nominal: output channels that set the size of attention; a pruned network keeps the unpruned number.
      stride: stride from input to output.
      dilation: dilation of the 3x3 convolutions.
      first_dilation: dilation of the first 3x3. In the first block of a dilated stage, it is the dilation of the
        previous stage.
      project: whether the shortcut changes the map. It cannot be derived from shapes: on a 1x1 map, a strided block
        of constant width changes no shape, but needs its projection.
      drop_path: probability that an example skips the residual branch in training.
    """

    kind: str
    channels: tuple[int, ...]
    nominal: int
    stride: int = 1
    dilation: int = 1
    first_dilation: int = 1
    project: bool = False
    drop_path: float = 0.0


@dataclasses.dataclass(frozen=True)
class Parts:
    """Modules and options that all blocks of a network share.

    Attributes:
      conv: convolution module, called with (features, size, ..., name=).
      norm: normalisation module that includes the activation unless act=None; called with `train`.
      act: the activation.
      attention: channel attention module, called with (channels, name=); None for none.
      anti_alias: low-pass filter, called with (x, stride=) after a 3x3 to apply its stride; None for none.
      shortcut: a key of `SHORTCUTS`.
      shortcut_size: kernel size of a strided projection.
      cardinality: groups of the 3x3 of a bottleneck.
      stride_first: whether the stride is in the first 1x1 of a bottleneck ("v1"), not in its 3x3 ("v1.5").
      dropout: rate of dropout before the last convolution.
      zero_init_last: whether the residual branch is initialised to zero.
    """

    conv: Any
    norm: Any
    act: Any
    attention: Any = None
    anti_alias: Any = None
    shortcut: str = "projection"
    shortcut_size: int = 1
    cardinality: int = 1
    stride_first: bool = False
    dropout: float = 0.0
    zero_init_last: bool = False

    @property
    def last(self) -> dict[str, Any]:
        """Options of the last normalisation: no activation, and the initialiser of its scale."""
        scale = nn.initializers.zeros if self.zero_init_last else nn.initializers.ones
        return {"act": None, "scale_init": scale}

    @property
    def last_conv(self) -> dict[str, Any]:
        """Options of the last convolution of a pre-activation block: the initialiser of its kernel."""
        return {"kernel_init": nn.initializers.zeros} if self.zero_init_last else {}


class _Block(nn.Module):
    """Base class of all blocks.

    Blocks are called with the map and `train`. If blocks are scanned or rates change over time, the float32 scalars
    `drop_path` and `dropout` override the rates of `spec` and `parts`.
    """

    spec: BlockSpec
    parts: Parts

    def _dropped(self, x: Array, train: bool, rate: Array | None) -> Array:
        return Dropout(self.parts.dropout)(x, train, rate)

    def _strided_3x3(self, x: Array, features: int, number: int, train: bool) -> Array:
        """Apply conv, norm and activation with the block's stride, or at stride 1 followed by a low-pass filter."""
        spec, parts = self.spec, self.parts
        filtered = parts.anti_alias and (spec.stride > 1 or spec.first_dilation != spec.dilation)
        x = parts.conv(
            features,
            3,
            stride=1 if filtered or (self._is_bottleneck and parts.stride_first) else spec.stride,
            dilation=spec.first_dilation,
            groups=parts.cardinality if self._is_bottleneck else 1,
            name=f"conv{number}",
        )(x)
        x = parts.norm(name=f"bn{number}")(x, train=train)
        return parts.anti_alias(x, stride=spec.stride) if filtered else x

    @property
    def _is_bottleneck(self) -> bool:
        return len(self.spec.channels) == 3

    def _sum(self, x: Array, y: Array, train: bool, drop_path: Array | None) -> Array:
        """Add the residual branch y, dropped at random for some examples, to the shortcut x."""
        if self.parts.shortcut == "none":
            return y
        if train and (self.spec.drop_path or drop_path is not None):
            rate = jnp.asarray(self.spec.drop_path if drop_path is None else drop_path, jnp.float32)
            y = drop(self.make_rng("dropout"), y, rate, (y.shape[0], 1, 1, 1))
        return y + x


class BasicBlock(_Block):
    """Two 3x3 convolutions. Source: He et al. 2016, figure 5, left."""

    @nn.compact
    def __call__(
        self, x: Array, train: bool, drop_path: Array | None = None, dropout: Array | None = None
    ) -> Array:
        """Map [N, H, W, C] to [N, H / stride, W / stride, channels]."""
        first, features = self.spec.channels
        y = self._strided_3x3(x, first, 1, train)
        y = self._dropped(y, train, dropout)
        y = self.parts.conv(features, 3, dilation=self.spec.dilation, name="conv2")(y)
        y = self.parts.norm(name="bn2", **self.parts.last)(y, train=train)
        return _activated_sum(self, x, y, train, drop_path)


class Bottleneck(_Block):
    """Convolutions 1x1, 3x3 and 1x1, with the stride in the 3x3 unless `stride_first`.

    Source: He et al. 2016, figure 5, right; grouped, Xie et al. 2017, figure 3c.
    """

    @nn.compact
    def __call__(
        self, x: Array, train: bool, drop_path: Array | None = None, dropout: Array | None = None
    ) -> Array:
        """Map [N, H, W, C] to [N, H / stride, W / stride, channels]."""
        first, middle, features = self.spec.channels
        stride = self.spec.stride if self.parts.stride_first else 1
        y = self.parts.conv(first, 1, stride=stride, name="conv1")(x)
        y = self.parts.norm(name="bn1")(y, train=train)
        y = self._strided_3x3(y, middle, 2, train)
        y = self._dropped(y, train, dropout)
        y = self.parts.conv(features, 1, name="conv3")(y)
        y = self.parts.norm(name="bn3", **self.parts.last)(y, train=train)
        return _activated_sum(self, x, y, train, drop_path)


def _activated_sum(
    block: _Block, x: Array, y: Array, train: bool, drop_path: Array | None
) -> Array:
    """Apply attention to the branch y, add the shortcut, and activate the sum."""
    if block.parts.attention:
        y = block.parts.attention(block.spec.nominal, name="se")(y)
    shortcut = SHORTCUTS[block.parts.shortcut](block, x, train) if block.spec.project else x
    return block.parts.act(block._sum(shortcut, y, train, drop_path))


class PreactBasic(_Block):
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
        return self._sum(_preact_shortcut(self, x, activated), y, train, drop_path)


class PreactBottleneck(_Block):
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
        return self._sum(_preact_shortcut(self, x, activated), y, train, drop_path)


def _preact_shortcut(block: _Block, x: Array, activated: Array) -> Array:
    """Return the identity, or a projection of the activated input without normalisation."""
    spec, parts = block.spec, block.parts
    if not spec.project:
        return x
    if parts.shortcut == "projection":
        return parts.conv(spec.channels[-1], 1, stride=spec.stride, name="downsample_conv")(
            activated
        )
    if parts.shortcut == "average":
        return parts.conv(spec.channels[-1], 1, name="downsample_conv")(_averaged(spec, activated))
    return SHORTCUTS[parts.shortcut](block, x, False)


def _averaged(spec: BlockSpec, x: Array) -> Array:
    """Average 2x2 windows at the block's stride, or at stride 1 in a dilated stage; return x if neither applies."""
    if spec.stride == 1 and spec.dilation == 1:
        return x
    if spec.stride == 1 or spec.dilation > 1:
        return average_pool(pad_bottom_right(x), size=2, stride=1)
    return average_pool(x, size=2, stride=spec.stride, partial=True)


def _projection(block: _Block, x: Array, train: bool) -> Array:
    """Project by a convolution at the block's stride, and normalise: option B, torchvision's `downsample`."""
    spec, parts = block.spec, block.parts
    size = parts.shortcut_size if spec.stride > 1 or spec.dilation > 1 else 1
    dilation = spec.first_dilation if size > 1 else 1
    y = parts.conv(
        spec.channels[-1], size, stride=spec.stride, dilation=dilation, name="downsample_0"
    )(x)
    return parts.norm(name="downsample_1", act=None)(y, train=train)


def _average_projection(block: _Block, x: Array, train: bool) -> Array:
    """Average-pool at the block's stride, then project by a 1x1 (ResNet-D).

    Source: He et al. 2019, "Bag of tricks", figure 2c.
    """
    y = _averaged(block.spec, x)
    y = block.parts.conv(block.spec.channels[-1], 1, name="downsample_1")(y)
    return block.parts.norm(name="downsample_2", act=None)(y, train=train)


def _pad(block: _Block, x: Array, train: bool) -> Array:
    """Subsample, and pad the channels with zeros, half of them on each side: option A."""
    del train
    x = x[:, :: block.spec.stride, :: block.spec.stride]
    new = block.spec.channels[-1] - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))


# Shortcuts of blocks that change the map; in all other blocks the shortcut is the identity.
SHORTCUTS = {
    "projection": _projection,
    "average": _average_projection,
    "pad": _pad,
    "none": lambda block, x, train: x,  # a plain network: nothing is added
}
BLOCKS = {
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
    "preact_basic": PreactBasic,
    "preact_bottleneck": PreactBottleneck,
}
EXPANSION = {"basic": 1, "bottleneck": 4, "preact_basic": 1, "preact_bottleneck": 4}
