"""Pooling: over windows, over the whole map, and the low-pass filters against aliasing."""

import functools
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flax_resnet.models import lowering
from flax_resnet.models.convolution import Array, convolution


def max_pool(x: Array, *, size: int, stride: int, padding: int = 0) -> Array:
    """Takes the maximum over size x size windows of [N, H, W, C]; the padding never wins."""
    fits = min(x.shape[1:3]) + 2 * padding >= size and size**2 <= 256  # a tap's number is a byte
    if fits and (lowering.adapts(x, "gpu") or (lowering.adapts(x, "cpu") and lowering.pins())):
        return _max_pool(x, size, stride, padding)
    return plain_max_pool(x, size, stride, padding)


def plain_max_pool(x: Array, size: int, stride: int, padding: int) -> Array:
    """Takes the maximum over windows by XLA's own operation."""
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    # The initial value must be a plain constant: only then does JAX know how to differentiate this.
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, sides)


# --- with a gradient by taps. A tap is a place in a window; they are numbered row by row. XLA's own gradient
# searches each window again (CPU, batch 16, 112x112x64: 100 ms, and 10 so), or writes down every window's maximum
# as float32 and its place as four int32 (GPU, batch 256, bfloat16: 3.2 GB, and 0.6 so). The winner's number, one
# byte, says the same. ---


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: Array, size: int, stride: int, padding: int) -> Array:
    def maxima(x: Array) -> Array:
        return functools.reduce(jnp.maximum, _taps(x, size, stride, padding))

    return lowering.on_cpu(maxima, lambda x: plain_max_pool(x, size, stride, padding), x)


def _max_pool_forward(x: Array, size: int, stride: int, padding: int) -> tuple:
    def by_taps(x: Array) -> tuple[Array, Array]:
        y, *taps = _taps(x, size, stride, padding)
        winner = jnp.zeros(y.shape, jnp.uint8)
        for number, tap in enumerate(taps, 1):
            wins = (tap > y) | (tap != tap)  # of equals the first; what is no number, over all
            winner, y = jnp.where(wins, jnp.uint8(number), winner), jnp.where(wins, tap, y)
        # Else XLA keeps the comparisons that it is made of.
        return y, lax.optimization_barrier(winner)

    y, winner = lowering.on_cpu(by_taps, by_taps, x)
    return y, (winner, x.shape)


def _max_pool_backward(size: int, stride: int, padding: int, kept: tuple, dy: Array) -> tuple:
    winner, (_, height, width, _) = kept
    # The map is made of cells of stride x stride places. In the window that begins so many cells before its own, a
    # place has the number that says how far it is from there, if the window reaches as far.
    rows, columns = (-(-side // stride) for side in (height, width))
    backs = range(-(padding // stride) - 1, -(-size // stride) + 1)

    def seen(x: Array, up: int, left: int) -> Array:
        """Returns, for all places of each cell, what x has for the window that begins so many cells before."""
        begins = zip((up, left), (rows, columns), x.shape[1:3], strict=True)
        sides = [(back, count - back - windows, 0) for back, count, windows in begins]
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *sides, (0, 0, 0)))
        return x[:, :, None, :, None]

    def at(down: np.ndarray, right: np.ndarray, winner: Array, dy: Array) -> Array:
        """Returns the gradient of some rows and columns of every cell, [N, rows, down, columns, right, C]."""
        shape = (len(dy), rows, len(down), columns, len(right), dy.shape[-1])
        total = jnp.zeros(shape, jnp.promote_types(dy.dtype, jnp.float32))
        for up, left in itertools.product(backs, backs):
            row, column = ((down + up * stride + padding)[:, None], right + left * stride + padding)
            inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
            if inside.any():
                numbers = np.where(inside, row * size + column, size**2).astype(np.int32)
                mine = seen(winner, up, left) == numbers.reshape(1, 1, len(down), 1, len(right), 1)
                total += jnp.where(mine, seen(dy, up, left), 0)
        return total.astype(dy.dtype)

    def joined(cells: Array) -> Array:
        cells = cells.reshape(len(dy), rows * stride, columns * stride, dy.shape[-1])
        return cells[:, :height, :width]

    def at_once(winner: Array, dy: Array) -> Array:
        return joined(at(np.arange(stride), np.arange(stride), winner, dy))

    def by_place(winner: Array, dy: Array) -> Array:
        """Does the same; XLA for GPUs then computes what dy is made of within the same kernel."""
        places = np.arange(stride)[:, None]
        parts = [jnp.concatenate([at(r, c, winner, dy) for c in places], 4) for r in places]
        return joined(jnp.concatenate(parts, 2))

    if lowering.adapts(dy, "gpu"):
        return (by_place(winner, dy),)
    return (lowering.on_cpu(at_once, by_place, winner, dy),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _taps(x: Array, size: int, stride: int, padding: int) -> list[Array]:
    """Returns, for each place in a window, what all windows have there."""
    side = (padding, padding, 0)
    lowest = jnp.asarray(-jnp.inf, x.dtype)
    padded = lax.pad(x, lowest, ((0, 0, 0), side, side, (0, 0, 0))) if padding else x
    height, width = (length - size + 1 for length in padded.shape[1:3])
    return [
        padded[:, row : row + height : stride, column : column + width : stride]
        for row, column in np.ndindex(size, size)
    ]


def average_pool(x: Array, *, size: int, stride: int, partial: bool = False) -> Array:
    """Averages size x size windows of [N, H, W, C].

    Args:
      x: [N, H, W, C].
      size: height and width of a window.
      stride: step between windows.
      partial: whether windows that reach over the bottom or right edge count too, averaged over
        what they cover (torch's ``ceil_mode=True, count_include_pad=False``); else they are left out.

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
    """Adds a row and a column of zeros: what makes a 2x2 window at stride 1 keep the size."""
    return jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))


def blur_pool(x: Array, *, stride: int) -> Array:
    """Low-pass filters with (1, 2, 1)² / 16, mirrored at the edges, and subsamples.

    Source: Zhang 2019, "Making convolutional networks shift-invariant again", section 3.
    """
    row = np.array([1, 2, 1]) / 4
    channels = x.shape[-1]
    kernel = np.tile((row[:, None] * row[None, :])[:, :, None, None], (1, 1, 1, channels))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    return convolution(padded, jnp.asarray(kernel, x.dtype), stride=stride, groups=channels)


def box_pool(x: Array, *, stride: int) -> Array:
    """Averages stride x stride windows: the simplest filter before subsampling.

    Odd maps are rounded up, as strided convolutions do: the shortcut has that size.
    """
    return average_pool(x, size=stride, stride=stride, partial=True)


ANTI_ALIAS = {"blur": blur_pool, "average": box_pool}


def _mean(x: Array) -> Array:
    # Summed in at least float32: 49 bfloat16 values would lose a digit.
    return x.mean(axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


def _max(x: Array) -> Array:
    return x.max(axis=(1, 2)).astype(jnp.promote_types(x.dtype, jnp.float32))


# [N, H, W, C] to [N, C], at least float32; "none" leaves the map.
GLOBAL_POOLS = {
    "avg": _mean,
    "max": _max,
    "avgmax": lambda x: 0.5 * (_mean(x) + _max(x)),
    "none": lambda x: x,
}


def adaptive_average_pool(x: Array, size: int) -> Array:
    """Averages [N, H, W, C] into size x size cells that cover it, as torch's AdaptiveAvgPool2d does.

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
