"""Pooling: over windows, over the whole map, and the low-pass filters against aliasing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flax_resnet.models import lowering
from flax_resnet.models.convolution import Array, convolution
from flax_resnet.models.lowering import apart


def max_pool(x: Array, *, size: int, stride: int, padding: int = 0) -> Array:
    """Takes the maximum over size x size windows of [N, H, W, C]; the padding never wins."""
    fits = min(x.shape[1:3]) + 2 * padding >= size
    if fits and lowering.adapts(x) and lowering.pins():
        return _max_pool(x, size, stride, padding)
    if fits and size**2 <= 256 and lowering.adapts(x, "gpu"):  # a tap's number is a byte
        return _max_pool_by_taps(x, size, stride, padding)
    return plain_max_pool(x, size, stride, padding)


def plain_max_pool(x: Array, size: int, stride: int, padding: int) -> Array:
    """Takes the maximum over windows by XLA's own operation."""
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    # The initial value must be a plain constant: only then does JAX know how to differentiate this.
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, sides)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: Array, size: int, stride: int, padding: int) -> Array:
    def separable(x: Array) -> Array:
        return _window_maxima(_padded(x, padding), size, stride)[1]

    return lowering.on_cpu(separable, lambda x: plain_max_pool(x, size, stride, padding), x)


def _max_pool_forward(x: Array, size: int, stride: int, padding: int) -> tuple:
    return _max_pool(x, size, stride, padding), x


def _max_pool_backward(size: int, stride: int, padding: int, x: Array, dy: Array) -> tuple:
    # 112x112x64, batch 16: 100 ms by XLA's select-and-scatter, 29 so.
    def separable(x: Array, dy: Array) -> Array:
        padded = _padded(x, padding)
        rows, y = _window_maxima(padded, size, stride)
        along_height = apart(_to_first_maximum(rows, y, dy, size, stride, axis=1))
        dx = _to_first_maximum(padded, rows, along_height, size, stride, axis=2)
        return dx[:, padding : padding + x.shape[1], padding : padding + x.shape[2]]

    def plain(x: Array, dy: Array) -> Array:
        return jax.vjp(lambda x: plain_max_pool(x, size, stride, padding), x)[1](dy)[0]

    return (lowering.on_cpu(separable, plain, x, dy),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _padded(x: Array, padding: int) -> Array:
    side = (padding, padding, 0)
    return lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), ((0, 0, 0), side, side, (0, 0, 0)))


def _taps(x: Array, size: int, stride: int, axis: int) -> list[Array]:
    """Returns, for each place in a window, what the windows along an axis have there."""
    reach = x.shape[axis] - size + 1
    return [lax.slice_in_dim(x, t, t + reach, stride, axis) for t in range(size)]


def _window_maxima(padded: Array, size: int, stride: int) -> tuple[Array, Array]:
    """Returns the maxima along the width, and those of whole windows."""

    def along(x: Array, axis: int) -> Array:
        first, *others = _taps(x, size, stride, axis)
        for tap in others:
            first = jnp.maximum(first, tap)
        return apart(first)

    rows = along(apart(padded), 2)
    return rows, along(rows, 1)


def _to_first_maximum(x: Array, y: Array, dy: Array, size: int, stride: int, axis: int) -> Array:
    """Returns the gradient of windows along one axis: dy goes to the first tap that equals the maximum y."""
    free, shares = jnp.ones(y.shape, bool), []
    for tap in _taps(x, size, stride, axis):
        wins = (tap == y) & free
        free &= ~wins
        shares.append(jnp.where(wins, dy, 0))
    length, windows = x.shape[axis], y.shape[axis]
    count = -(-length // stride)
    phases = []  # the positions stride i + phase
    for phase in range(stride):
        total = jnp.zeros((*x.shape[:axis], count, *x.shape[axis + 1 :]), dy.dtype)
        for tap in range(phase, size, stride):
            sides = [(0, 0, 0)] * x.ndim
            sides[axis] = (tap // stride, count - tap // stride - windows, 0)
            total = total + lax.pad(shares[tap], jnp.zeros((), dy.dtype), sides)
        phases.append(apart(total))
    dx = jnp.stack(phases, axis + 1).reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
    return lax.slice_in_dim(dx, 0, length, 1, axis)


# --- on GPU. Of 112x112x64, batch 256, bfloat16, XLA's own gradient moves 3.2 GB: it writes down every window's
# maximum as float32 and its place as four int32. The number of the tap, one byte, says the same in 0.6 GB. ---


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool_by_taps(x: Array, size: int, stride: int, padding: int) -> Array:
    return plain_max_pool(x, size, stride, padding)


def _max_pool_by_taps_forward(x: Array, size: int, stride: int, padding: int) -> tuple:
    padded = _padded(x, padding)
    taps = [tap for rows in _taps(padded, size, stride, 1) for tap in _taps(rows, size, stride, 2)]
    y, winner = taps[0], jnp.zeros(taps[0].shape, jnp.uint8)
    for number, tap in enumerate(taps[1:], 1):
        winner = jnp.where(tap > y, jnp.uint8(number), winner)  # of equals the first
        y = jnp.maximum(y, tap)
    # Else XLA keeps the eight comparisons that it is made of.
    return y, (lax.optimization_barrier(winner), x.shape)


def _max_pool_by_taps_backward(
    size: int, stride: int, padding: int, kept: tuple, dy: Array
) -> tuple:
    winner, shape = kept
    wide = jnp.promote_types(dy.dtype, jnp.float32)
    # Cells of stride x stride places, the padding before the map among them.
    counts = [-(-(side + padding) // stride) for side in shape[1:3]]

    def seen(x: Array, up: int, left: int) -> Array:
        """Returns, for each cell, what x has for the window that begins so many cells before."""
        sides = [
            (back, count - back - windows, 0)
            for back, count, windows in zip((up, left), counts, x.shape[1:3], strict=True)
        ]
        return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *sides, (0, 0, 0)))

    def at(row: int, column: int) -> Array:
        """Returns the gradient of a place of every cell."""
        total = jnp.zeros((shape[0], *counts, shape[3]), wide)
        for down in range(row, size, stride):
            for right in range(column, size, stride):
                back = down // stride, right // stride
                mine = seen(winner, *back) == down * size + right
                total += jnp.where(mine, seen(dy, *back), 0)
        return total.astype(dy.dtype)

    rows = [
        jnp.stack([at(row, column) for column in range(stride)], 3).reshape(
            shape[0], counts[0], counts[1] * stride, shape[3]
        )
        for row in range(stride)
    ]
    dx = jnp.stack(rows, 2).reshape(shape[0], counts[0] * stride, counts[1] * stride, shape[3])
    return (dx[:, padding : padding + shape[1], padding : padding + shape[2]],)


_max_pool_by_taps.defvjp(_max_pool_by_taps_forward, _max_pool_by_taps_backward)


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
