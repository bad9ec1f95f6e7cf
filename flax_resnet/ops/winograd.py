"""Winograd's algorithm for 3x3 convolutions at stride 1 and padding 1, and their gradients.

Tiles of (m + 2) x (m + 2) pixels overlap by two pixels and give m x m outputs. In one dimension, the outputs of a
tile d under a kernel g are ``A^T ((G g) * (B^T d))``, with m + 2 multiplications instead of 3 m. In two dimensions,
the matrices apply to rows and to columns, and the sums over input channels are (m + 2)² matrix products. m = 4
needs a quarter of the multiplications, m = 2 four ninths.

The matrices come from polynomial interpolation. The choice of points decides the rounding error. The usual points
0, ±1, ±2 give an error of 6e-6 of the largest output and 1e-5 of the largest kernel gradient (float32, 64
channels); the points 0, ±3/4, ±3/2 give 1.3e-6 and 5e-6.

Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks", sections 3 and 4.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.polynomial import polynomial

from flax_resnet.ops.dispatch import fusion_barrier

Array = jax.Array


class Transform(NamedTuple):
    """The matrices of F(m, 3): `outputs` A [m + 2, m], `kernel` G [m + 2, 3], `inputs` B^T [m + 2, m + 2]."""

    outputs: np.ndarray
    kernel: np.ndarray
    inputs: np.ndarray


def transform(points: Sequence[float]) -> Transform:
    """Return the transform that interpolates at m + 1 points and at infinity (Toom-Cook)."""
    size = len(points) + 1
    outputs, kernel = np.zeros((size, size - 2)), np.zeros((size, 3))
    inputs = np.zeros((size, size))
    for row, point in enumerate(points):
        others = [other for other in points if other != point]
        outputs[row] = float(point) ** np.arange(size - 2)
        kernel[row] = float(point) ** np.arange(3) / np.prod([point - other for other in others])
        inputs[row, :-1] = polynomial.polyfromroots(others)
    outputs[-1, -1] = kernel[-1, -1] = 1
    inputs[-1] = polynomial.polyfromroots(points)
    return Transform(outputs, kernel, inputs)


SMALL, LARGE = transform((0, 1, -1)), transform((0, 0.75, -0.75, 1.5, -1.5))


def transform_for(x: Array, features: int) -> Transform:
    """Return the transform for maps [N, H, W, I] and O features: 4x4 outputs per tile, or 2x2 with few tiles.

    With fewer tiles than channels, the (m + 2)² kernels cause most of the memory traffic.
    """
    size = LARGE.outputs.shape[1]
    tiles = x.shape[0] * math.prod(-(-length // size) for length in x.shape[1:3])
    return LARGE if tiles >= max(x.shape[3], features) else SMALL


@jax.jit
def convolve(x: Array, kernel: Array) -> Array:
    """Convolve x [N, H, W, I] with a kernel [3, 3, I, O]; return [N, H, W, O]."""
    return _convolve(x, kernel, over=2)


@jax.jit
def input_gradient(kernel: Array, dy: Array) -> Array:
    """Map dy [N, H, W, O] to dx [N, H, W, I]: the convolution with the kernel rotated by 180 degrees."""
    return _convolve(dy, kernel[::-1, ::-1], over=3)


@jax.jit
def kernel_gradient(x: Array, dy: Array) -> Array:
    """Map x [N, H, W, I] and dy [N, H, W, O] to the kernel's gradient [3, 3, I, O]."""
    t = transform_for(x, dy.shape[3])
    size = t.outputs.shape[1]
    pixels = (0, 1, 2)
    # Write these arrays to memory first: a dot would copy a right operand that is a slice.
    padded = fusion_barrier(jnp.pad(dy, ((0, 0), *_filling(dy, size), (0, 0))))
    rows = [fusion_barrier(_sum(_taps(padded, 1, size, size), part)) for part in t.outputs]
    outputs = [
        [fusion_barrier(_sum(_taps(row, 2, size, size), part)) for part in t.outputs]
        for row in rows
    ]
    tiles = _tiles(x, t)
    products = [
        [
            lax.dot_general(tiles[column, row], of_dy, ((pixels, pixels), ((), ())))
            for column, of_dy in enumerate(of_row)
        ]
        for row, of_row in enumerate(outputs)
    ]
    columns = [[_sum(row, part) for part in t.kernel.T] for row in products]
    return jnp.stack(
        [jnp.stack([_sum(c, part) for c in zip(*columns, strict=True)]) for part in t.kernel.T]
    )


def _convolve(x: Array, kernel: Array, over: int) -> Array:
    """Convolve, summing over the kernel's axis `over`, 2 or 3."""
    t = transform_for(x, kernel.shape[5 - over])
    size = t.outputs.shape[1]
    rows = fusion_barrier(_spread(kernel, t.kernel.T, 0))
    kernels = fusion_barrier(_spread(rows.swapaxes(0, 1), t.kernel.T, 0))
    # Shapes: [m + 2, m + 2, N, tiles, tiles, O]; [m + 2, N, tiles, tiles, m, O]; [N, tiles, m, tiles, m, O].
    products = fusion_barrier(
        lax.dot_general(_tiles(x, t), kernels, (((5,), (over,)), ((0, 1), (0, 1))))
    )
    y = _spread(fusion_barrier(_spread(products, t.outputs, 4)), t.outputs, 2)
    y = y.reshape(len(x), y.shape[1] * size, y.shape[3] * size, -1)
    return y[:, : x.shape[1], : x.shape[2]]


def _filling(x: Array, size: int) -> tuple:
    """Return the padding that makes height and width multiples of `size`."""
    return tuple((0, -length % size) for length in x.shape[1:3])


def _tiles(x: Array, t: Transform) -> Array:
    """Return the transformed tiles of x [N, H, W, I]: [m + 2 columns, m + 2 rows, N, tiles, tiles, I]."""
    window, size = len(t.inputs), t.outputs.shape[1]
    sides = [(1, high + 1) for _, high in _filling(x, size)]
    padded = fusion_barrier(jnp.pad(x, ((0, 0), *sides, (0, 0))))
    rows = fusion_barrier(_spread(_taps(padded, 1, window, size), t.inputs.T, 0))
    return fusion_barrier(_spread(_taps(rows, 3, window, size), t.inputs.T, 0))


def _taps(x: Array, axis: int, window: int, size: int) -> list[Array]:
    """Return the first, second, ... pixel of every window along an axis; windows start every `size` pixels."""
    reach = x.shape[axis] - window + 1
    return [lax.slice_in_dim(x, tap, tap + reach, size, axis) for tap in range(window)]


def _sum(arrays: Iterable[Array], weights: np.ndarray) -> Array:
    """Return the weighted sum; arrays of weight 0 are skipped."""
    pairs = zip(arrays, weights, strict=True)
    first, *others = (x if w == 1 else x * np.asarray(w, x.dtype) for x, w in pairs if w)
    for other in others:
        first = first + other
    return first


def _spread(arrays: Iterable[Array], matrix: np.ndarray, axis: int) -> Array:
    """Return the weighted sums of the arrays, one per column of the matrix, stacked on a new axis.

    One fused loop writes all sums, including products with zero. It is faster than a loop for each sum followed by
    a concatenation.
    """
    total: Any = 0
    for array, weights in zip(arrays, matrix, strict=True):
        shape = [1] * (array.ndim + 1)
        shape[axis] = len(weights)
        total = total + np.asarray(weights, array.dtype).reshape(shape) * jnp.expand_dims(
            array, axis
        )
    return total
