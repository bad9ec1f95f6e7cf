"""Pooling over windows and over the whole map, and low-pass filters against aliasing."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from flax_resnet.models.layers.convolution import Array, convolution


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


ANTI_ALIAS = {"blur": blur_pool, "average": box_pool}


def _mean(x: Array) -> Array:
    # Sum in at least float32: a sum of 49 bfloat16 values would lose a digit.
    return x.mean(axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


def _max(x: Array) -> Array:
    return x.max(axis=(1, 2)).astype(jnp.promote_types(x.dtype, jnp.float32))


# [N, H, W, C] to [N, C], at least float32; "none" returns the map.
GLOBAL_POOLS = {
    "avg": _mean,
    "max": _max,
    "avgmax": lambda x: 0.5 * (_mean(x) + _max(x)),
    "none": lambda x: x,
}


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
