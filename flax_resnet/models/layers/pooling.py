"""Pooling over windows and over the whole map, and low-pass filters against aliasing."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax

from flax_resnet.models.layers.convolution import Array, convolution
from flax_resnet.ops.max_pool import max_pool
from flax_resnet.settings import Registry, Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class AntiAliasRow(Row):
    """One low-pass filter that replaces strides.

    Attributes:
      filter: (map, stride=) -> the filtered and subsampled map; None for no filter.
      max_pool: the 3x3 max-pool after the stem, which halves the map, with the filter in place of its stride.
    """

    filter: Callable[..., Array] | None
    max_pool: Callable[[Array], Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlobalPoolRow(Row):
    """One pooling of the last feature map.

    Attributes:
      pool: from [N, H, W, C] to [N, C], at least float32.
      keeps_map: whether `pool` returns the map instead.
    """

    pool: Callable[[Array], Array]
    keeps_map: bool = False


ANTI_ALIAS: Registry[AntiAliasRow] = Registry(__name__, "ANTI_ALIAS_ROWS")
GLOBAL_POOLS: Registry[GlobalPoolRow] = Registry(__name__, "GLOBAL_POOL_ROWS")


def average_pool(x: Array, *, size: int, stride: int, partial: bool = False) -> Array:
    """Average size x size windows of [N, H, W, C].

    Args:
      x: [N, H, W, C].
      size: height and width of a window.
      stride: step between windows.
      partial: whether to include windows that extend over the bottom or right edge, averaged over the pixels that
        they cover (torch's ``ceil_mode=True, count_include_pad=False``).

    Returns:
      [N, H', W', C] with H' = (H - size) / stride + 1, rounded up if `partial`, else down.
    """
    sides = ((0, 0), (0, 0), (0, 0), (0, 0))
    if partial:
        over = [-(n - size) % stride for n in x.shape[1:3]]
        sides = ((0, 0), (0, over[0]), (0, over[1]), (0, 0))

    def sums(y: Array) -> Array:
        return lax.reduce_window(y, 0.0, lax.add, (1, size, size, 1), (1, stride, stride, 1), sides)

    if not any(high for _, high in sides):
        return sums(x) / size**2
    covered = sums(jnp.ones((1, *x.shape[1:3], 1), x.dtype))
    return sums(x) / covered


def pad_bottom_right(x: Array) -> Array:
    """Pad with a row and a column of zeros, so that a 2x2 window at stride 1 keeps the size."""
    return jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))


def blur_pool(x: Array, *, stride: int) -> Array:
    """Low-pass filter with (1, 2, 1)² / 16, mirrored at the edges, and subsample.

    Source: Zhang 2019, "Making convolutional networks shift-invariant again", section 3.
    """
    row = np.array([1, 2, 1]) / 4
    channels = x.shape[-1]
    kernel = np.tile((row[:, None] * row[None, :])[:, :, None, None], (1, 1, 1, channels))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    return convolution(padded, jnp.asarray(kernel, x.dtype), stride=stride, groups=channels)


def box_pool(x: Array, *, stride: int) -> Array:
    """Average stride x stride windows, the simplest filter before subsampling.

    Odd sizes are rounded up, as in strided convolutions, so that the result has the size of the shortcut.
    """
    return average_pool(x, size=stride, stride=stride, partial=True)


def _mean(x: Array) -> Array:
    # Sum in at least float32: a sum of 49 bfloat16 values would lose a digit.
    return x.mean(axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


def _max(x: Array) -> Array:
    return x.max(axis=(1, 2)).astype(jnp.promote_types(x.dtype, jnp.float32))


def adaptive_average_pool(x: Array, size: int) -> Array:
    """Average [N, H, W, C] into size x size cells that cover the map, as torch's AdaptiveAvgPool2d.

    Cell i covers the rows from floor(i H / size) to ceil((i + 1) H / size).
    """

    def weights(length: int) -> Array:
        table = np.zeros((size, length))
        for cell in range(size):
            start, stop = cell * length // size, -(-(cell + 1) * length // size)
            table[cell, start:stop] = 1 / (stop - start)
        return jnp.asarray(table, x.dtype)

    if x.shape[1:3] == (size, size):
        return x
    return jnp.einsum("nhwc,ih,jw->nijc", x, weights(x.shape[1]), weights(x.shape[2]))


ANTI_ALIAS_ROWS = (
    AntiAliasRow(
        name="none",
        help="no filter",
        filter=None,
        max_pool=partial(max_pool, size=3, stride=2, padding=1),
    ),
    AntiAliasRow(
        name="blur",
        help="binomial 3x3 filter (1, 2, 1)",
        filter=blur_pool,
        max_pool=lambda x: blur_pool(max_pool(x, size=3, stride=1, padding=1), stride=2),
    ),
    AntiAliasRow(
        name="average",
        help="mean of each window; it also replaces the max pool after the stem",
        filter=box_pool,
        max_pool=partial(average_pool, size=2, stride=2),
    ),
)
GLOBAL_POOL_ROWS = (
    GlobalPoolRow(name="avg", help="mean of each channel", pool=_mean),
    GlobalPoolRow(name="max", help="maximum of each channel", pool=_max),
    GlobalPoolRow(
        name="avgmax",
        help="mean of avg and max",
        pool=lambda x: 0.5 * (_mean(x) + _max(x)),
    ),
    GlobalPoolRow(
        name="none",
        help="no pooling, for a network without a head",
        pool=lambda x: x,
        keeps_map=True,
    ),
)
