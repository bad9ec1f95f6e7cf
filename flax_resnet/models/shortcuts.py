"""Shortcuts of blocks that change the map; in all other blocks, the shortcut is the identity.

Call them within the block's `__call__`.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from flax_resnet.models.block_spec import BlockSpec, Parts
from flax_resnet.models.layers.convolution import Array
from flax_resnet.models.layers.pooling import average_pool, pad_bottom_right
from flax_resnet.settings import Registry, Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortcutRow(Row):
    """One shortcut of blocks that change the map. In all other blocks, the shortcut is the identity.

    Attributes:
      apply: (spec, parts, map, train) -> the shortcut of a post-activation block.
      apply_preact: (spec, parts, map, activated map) -> the shortcut of a pre-activation block.
      is_added: whether blocks add the shortcut to their branch.
      has_kernel: whether the shortcut is a convolution at the block's stride, of any kernel size.
      keeps_channels: whether the shortcut cannot have fewer channels than the map.
    """

    apply: Callable[[BlockSpec, Parts, Array, bool], Array]
    apply_preact: Callable[[BlockSpec, Parts, Array, Array], Array]
    is_added: bool = True
    has_kernel: bool = False
    keeps_channels: bool = False


SHORTCUTS: Registry[ShortcutRow] = Registry(__name__)


def _averaged(spec: BlockSpec, x: Array) -> Array:
    """Average 2x2 windows at the block's stride, or at stride 1 in a dilated stage; return x if neither applies."""
    if spec.stride == 1 and spec.dilation == 1:
        return x
    if spec.stride == 1 or spec.dilation > 1:
        return average_pool(pad_bottom_right(x), size=2, stride=1)
    return average_pool(x, size=2, stride=spec.stride, partial=True)


def _projection(spec: BlockSpec, parts: Parts, x: Array, train: bool) -> Array:
    """Project by a convolution at the block's stride, and normalise: option B, torchvision's `downsample`."""
    size = parts.shortcut_size if spec.stride > 1 or spec.dilation > 1 else 1
    if size == 1:
        conv = "downsample_0", spec.channels[-1]
        return parts.conv_norm(x, train, conv, "downsample_1", stride=spec.stride, act=None)[0]
    dilation = spec.first_dilation
    y = parts.conv(
        spec.channels[-1], size, stride=spec.stride, dilation=dilation, name="downsample_0"
    )(x)
    return parts.norm(name="downsample_1", act=None)(y, train=train)


def _preact_projection(spec: BlockSpec, parts: Parts, x: Array, activated: Array) -> Array:
    """Project the activated map by a 1x1 at the block's stride, without normalisation."""
    del x
    return parts.conv(spec.channels[-1], 1, stride=spec.stride, name="downsample_conv")(activated)


def _average_projection(spec: BlockSpec, parts: Parts, x: Array, train: bool) -> Array:
    """Average-pool at the block's stride, then project by a 1x1 (ResNet-D).

    Source: He et al. 2019, "Bag of tricks", figure 2c.
    """
    conv = "downsample_1", spec.channels[-1]
    return parts.conv_norm(_averaged(spec, x), train, conv, "downsample_2", act=None)[0]


def _preact_average_projection(spec: BlockSpec, parts: Parts, x: Array, activated: Array) -> Array:
    """Average-pool the activated map at the block's stride, then project by a 1x1."""
    del x
    averaged = _averaged(spec, activated)
    return parts.conv(spec.channels[-1], 1, name="downsample_conv")(averaged)


def _pad(spec: BlockSpec, parts: Parts, x: Array, train: bool) -> Array:
    """Subsample, and pad the channels with zeros, half of them on each side: option A."""
    del parts, train
    # Not by indexing, which gathers if the batch is symbolic.
    for axis in (1, 2):
        x = lax.slice_in_dim(x, 0, None, spec.stride, axis=axis)
    new = spec.channels[-1] - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))


ROWS = (
    ShortcutRow(
        name="projection",
        help="1x1 convolution (option B)",
        apply=_projection,
        apply_preact=_preact_projection,
        has_kernel=True,
    ),
    ShortcutRow(
        name="average",
        help="average pool and 1x1 convolution (ResNet-D)",
        apply=_average_projection,
        apply_preact=_preact_average_projection,
    ),
    ShortcutRow(
        name="pad",
        help="subsampled map, padded with zero channels (option A)",
        apply=_pad,
        apply_preact=lambda spec, parts, x, activated: _pad(spec, parts, x, False),
        keeps_channels=True,
    ),
    ShortcutRow(
        name="none",
        help="no shortcut, not even in other blocks: a plain network",
        apply=lambda spec, parts, x, train: x,
        apply_preact=lambda spec, parts, x, activated: x,
        is_added=False,
    ),
)
