"""3x3 convolutions at stride 1 and padding 1 with fewer multiplications, and their gradients.

Tiles of (m + 2) x (m + 2) pixels overlap by two and give m x m outputs. In one dimension, the outputs of a tile
d under a kernel g are ``A^T ((G g) * (B^T d))``, with m + 2 multiplications instead of 3 m; in two, the
matrices apply to rows and to columns, and the sums over input channels are (m + 2)² matrix products. m = 4
takes a quarter of the multiplications, m = 2 four ninths.

The matrices come from polynomial interpolation, at points that decide how much is lost to rounding. The usual
0, ±1, ±2 lose 6e-6 of the largest output and 1e-5 of the largest kernel gradient (float32, 64 channels); 0,
±3/4, ±3/2 lose 1.3e-6 and 5e-6.

Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks", sections 3 and 4.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.polynomial import polynomial

from flax_resnet.models.lowering import apart

Array = jax.Array


class Transform(NamedTuple):
    """The matrices of F(m, 3): `outputs` A [m + 2, m], `kernel` G [m + 2, 3], `inputs` B^T [m + 2, m + 2]."""

    outputs: np.ndarray
    kernel: np.ndarray
    inputs: np.ndarray


def transform(points: Sequence[float]) -> Transform:
    """Interpolates at m + 1 points and at infinity (Toom and Cook)."""
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


def transform_for(x: Array) -> Transform:
    """Returns the transform for a map: of 4x4 outputs a tile, of 2x2 where there would be few of them."""
    return SMALL if min(x.shape[1:3]) <= 8 else LARGE


@jax.jit
def convolve(x: Array, kernel: Array) -> Array:
    """Maps [N, H, W, I] to [N, H, W, O] by a kernel [3, 3, I, O]."""
    return _convolve(x, kernel, over=2)


@jax.jit
def input_gradient(kernel: Array, dy: Array) -> Array:
    """Maps dy [N, H, W, O] to dx [N, H, W, I]: the convolution with the kernel turned around."""
    return _convolve(dy, kernel[::-1, ::-1], over=3)


@jax.jit
def kernel_gradient(x: Array, dy: Array) -> Array:
    """Maps x [N, H, W, I] and dy [N, H, W, O] to the kernel's gradient [3, 3, I, O]."""
    t = transform_for(x)
    size = t.outputs.shape[1]
    pixels = (0, 1, 2)
    padded = apart(jnp.pad(dy, ((0, 0), *_filling(dy, size), (0, 0))))
    inputs, outputs = _tiles(x, t), _transformed(padded, t.outputs, size)
    products = [
        [
            lax.dot_general(of_x, of_dy, ((pixels, pixels), ((), ())))
            for of_x, of_dy in zip(*rows, strict=True)
        ]
        for rows in zip(inputs, outputs, strict=True)
    ]
    columns = [[_sum(row, part) for part in t.kernel.T] for row in products]
    return jnp.stack(
        [jnp.stack([_sum(c, part) for c in zip(*columns, strict=True)]) for part in t.kernel.T]
    )


def _convolve(x: Array, kernel: Array, over: int) -> Array:
    """Convolves; `over` is the axis of the kernel that is summed over, 2 or 3."""
    t = transform_for(x)
    rows = [apart(_sum(kernel, part)) for part in t.kernel]
    kernels = apart(jnp.stack([apart(jnp.stack([_sum(r, p) for p in t.kernel])) for r in rows]))
    tiles = apart(jnp.stack([jnp.stack(row) for row in _tiles(x, t)]))
    products = apart(lax.dot_general(tiles, kernels, (((5,), (over,)), ((0, 1), (0, 1)))))
    # [m, m + 2, N, tiles, tiles, O], then [N, tiles, m, tiles, m, O].
    summed = apart(_spread(products, t.outputs, 0))
    images = [summed[:, column].transpose(1, 2, 0, 3, 4) for column in range(summed.shape[1])]
    y = _spread(images, t.outputs, 4)
    size = t.outputs.shape[1]
    y = y.reshape(len(x), y.shape[1] * size, y.shape[3] * size, -1)
    return y[:, : x.shape[1], : x.shape[2]]


def _filling(x: Array, size: int) -> tuple:
    """Returns the padding that makes height and width multiples of `size`."""
    return tuple((0, -length % size) for length in x.shape[1:3])


def _tiles(x: Array, t: Transform) -> list[list[Array]]:
    """Returns the transformed tiles of x [N, H, W, I]: (m + 2)² arrays [N, tiles, tiles, I]."""
    size = t.outputs.shape[1]
    sides = [(1, high + 1) for _, high in _filling(x, size)]
    padded = apart(jnp.pad(x, ((0, 0), *sides, (0, 0))))
    return _transformed(padded, t.inputs, size)


def _transformed(x: Array, matrix: np.ndarray, size: int) -> list[list[Array]]:
    """Cuts windows at steps of `size`, and applies a matrix [made, window] to their rows and columns."""
    window = matrix.shape[1]

    def taps(x: Array, axis: int) -> list[Array]:
        reach = x.shape[axis] - window + 1
        return [lax.slice_in_dim(x, t, t + reach, size, axis) for t in range(window)]

    rows = [apart(_sum(taps(x, 1), part)) for part in matrix]
    return [[apart(_sum(taps(row, 2), part)) for part in matrix] for row in rows]


def _sum(arrays: Iterable[Array], weights: np.ndarray) -> Array:
    """Returns the weighted sum, without what weighs nothing."""
    pairs = zip(arrays, weights, strict=True)
    first, *others = (x if w == 1 else x * np.asarray(w, x.dtype) for x, w in pairs if w)
    for other in others:
        first = first + other
    return first


def _spread(arrays: Iterable[Array], matrix: np.ndarray, axis: int) -> Array:
    """Returns all the weighted sums by the columns of a matrix, on a new axis, in one loop."""
    total = 0
    for array, weights in zip(arrays, matrix, strict=True):
        shape = [1] * (array.ndim + 1)
        shape[axis] = len(weights)
        total = total + np.asarray(weights, array.dtype).reshape(shape) * jnp.expand_dims(
            array, axis
        )
    return total
