"""Algorithms for convolutions: each is three functions, forward, input gradient and kernel gradient.

conv.py chooses among them. Times in the comments are medians on two cores of an AMD EPYC (Zen 4, AVX-512), float32,
batch 16, freed memory kept, compared with XLA's default (jaxlib 0.10). Times that name another machine are compared
with XLA's own kernels, which `dispatch.compiler_options` selects.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flax_resnet.ops import winograd
from flax_resnet.ops.dispatch import fusion_barrier

Array = jax.Array


class Geometry(NamedTuple):
    """Stride, padding, dilation and groups, the same in both directions; as in `convolution`."""

    stride: int
    padding: int
    dilation: int
    groups: int


# A 1x1 convolution of every pixel.
EVERY_PIXEL = Geometry(stride=1, padding=0, dilation=1, groups=1)


class ConvAlgorithm(NamedTuple):
    """One algorithm for a convolution and its gradients.

    Attributes:
      forward: (geometry, x, kernel) to y.
      input_gradient: (geometry, x, kernel, dy) to dx.
      kernel_gradient: (geometry, x, kernel, dy) to the gradient of the kernel.
    """

    forward: Callable
    input_gradient: Callable
    kernel_gradient: Callable


# --- XLA's own ---


def plain(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """Convolve with XLA's own operation."""
    stride, padding, dilation, groups = geometry
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _differentiated(forward: Callable) -> ConvAlgorithm:
    """Return the algorithm whose gradients JAX derives from its forward function."""

    def input_gradient(geometry: Geometry, x: Array, kernel: Array, dy: Array) -> Array:
        return jax.vjp(lambda x: forward(geometry, x, kernel), x)[1](dy)[0]

    def kernel_gradient(geometry: Geometry, x: Array, kernel: Array, dy: Array) -> Array:
        return jax.vjp(lambda kernel: forward(geometry, x, kernel), kernel)[1](dy)[0]

    return ConvAlgorithm(forward, input_gradient, kernel_gradient)


def _widened(algorithm: ConvAlgorithm) -> ConvAlgorithm:
    """Return the algorithm computed in at least float32, as XLA does on CPU; narrower dtypes lose digits."""

    def widened(function: Callable) -> Callable:
        def run(geometry: Geometry, *arrays: Array) -> Array:
            wide = jnp.promote_types(arrays[0].dtype, jnp.float32)
            return function(geometry, *(x.astype(wide) for x in arrays)).astype(arrays[0].dtype)

        return run

    return ConvAlgorithm(*map(widened, algorithm))


PLAIN = _differentiated(plain)

# --- 1x1 convolutions as a dot. y, dx, dkernel fall from 20, 22, 57 to 9, 9, 13 ms (56x56, 64 to 256 channels). ---


def _dot(x: Array, y: Array, over_x: tuple, over_y: tuple) -> Array:
    over = ((over_x, over_y), ((), ()))
    # For a bfloat16 result, XLA:CPU multiplies in float32: 160 to 190 GFLOP/s. For a float32 result, it uses the
    # processor's bfloat16 instructions: 270 to 380 GFLOP/s for y and dx.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return lax.dot_general(x, y, over, preferred_element_type=wide).astype(x.dtype)


def _pointwise(geometry: Geometry, x: Array, kernel: Array) -> Array:
    return _dot(_every(geometry.stride, x), kernel[0, 0], (3,), (0,))


def _pointwise_input(geometry: Geometry, x: Array, kernel: Array, dy: Array) -> Array:
    stride = geometry.stride
    dx = _dot(dy, kernel[0, 0], (3,), (1,))
    if stride == 1:
        return dx
    sides = [
        (0, n - (m - 1) * stride - 1, stride - 1)
        for n, m in zip(x.shape[1:3], dy.shape[1:3], strict=True)
    ]
    return lax.pad(dx, jnp.zeros((), dx.dtype), ((0, 0, 0), *sides, (0, 0, 0)))


def _pointwise_kernel(geometry: Geometry, x: Array, kernel: Array, dy: Array) -> Array:
    del kernel
    x, pixels = _every(geometry.stride, x), (0, 1, 2)
    # Transpose the narrower operand: 120 instead of 84 GFLOP/s for 64 x 256 channels.
    if x.shape[-1] <= dy.shape[-1]:
        return _dot(x, dy, pixels, pixels)[None, None]
    return _dot(dy, x, pixels, pixels).T[None, None]


def _every(stride: int, x: Array) -> Array:
    return x[:, ::stride, ::stride]


POINTWISE = ConvAlgorithm(_pointwise, _pointwise_input, _pointwise_kernel)

# --- tiny maps, and few pixels in total ---


def _patches(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """Gather the taps of each output position and multiply them by the kernel in one dot."""
    stride, padding = geometry.stride, geometry.padding
    batch, height, width, channels = x.shape
    kernel_height, kernel_width, _, features = kernel.shape
    out_height = (height + 2 * padding - kernel_height) // stride + 1
    out_width = (width + 2 * padding - kernel_width) // stride + 1

    def sees_input(tap: int, size: int, out_size: int) -> bool:
        return any(0 <= o * stride + tap - padding < size for o in range(out_size))

    rows = [t for t in range(kernel_height) if sees_input(t, height, out_height)]
    columns = [t for t in range(kernel_width) if sees_input(t, width, out_width)]
    if not (_adjacent(rows) and _adjacent(columns)):
        # No network here has such a stride and padding.
        return plain(geometry, x, kernel)
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    patches = [
        padded[
            :,
            row : row + (out_height - 1) * stride + 1 : stride,
            column : column + (out_width - 1) * stride + 1 : stride,
        ]
        for row in rows
        for column in columns
    ]
    used = kernel[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    left = jnp.concatenate(patches, axis=-1).reshape(-1, len(patches) * channels)
    return (left @ used.reshape(-1, features)).reshape(batch, out_height, out_width, features)


def _adjacent(taps: list[int]) -> bool:
    return bool(taps) and taps[-1] - taps[0] + 1 == len(taps)


PATCHES = _widened(_differentiated(_patches))

# --- kernel gradients, summed over runs of images. XLA's kernel gradient reads the whole batch, and waits for
# memory if the batch does not fit the cache. Runs of too few images give XLA too little work. Times in ms on two
# cores of an Intel Xeon (AVX-512), for the whole batch at once and for two numbers of runs:
#   batch 500, 31x31, 24 to 32 channels            at once 104    16 runs 60    64 runs 65
#   batch 128, 32x32, 16 to 16 channels            at once 12      4 runs 8     32 runs 16
#   batch 128, 32x32, 48 to 48 channels            at once 53      4 runs 38    32 runs 56
#   batch 16, 56x56 to 28x28, 128 to 128 channels  at once 23      4 runs 30    16 runs 64
#   batch 16, a stem of 224x224                    at once 38      4 runs 51    16 runs 108
# ---

RUN = 32  # images per run
MOST = 32  # largest number of runs; each is one more convolution to compile


def _runs_kernel(geometry: Geometry, x: Array, kernel: Array, dy: Array) -> Array:
    """Compute the kernel gradient as a sum over runs of images."""
    parts = min(MOST, math.ceil(len(x) / RUN))
    size = math.ceil(len(x) / parts)
    runs = [
        PLAIN.kernel_gradient(geometry, x[first : first + size], kernel, dy[first : first + size])
        for first in range(0, len(x), size)
    ]
    return sum(map(fusion_barrier, runs[1:]), fusion_barrier(runs[0]))


RUNS = _widened(PLAIN._replace(kernel_gradient=_runs_kernel))

# --- groups. With 32 groups, y, dx, dkernel fall from 131, 132, 14,776 to 25, 22, 27 ms (56x56x128), and from 15,
# 16, 1,794 to 12, 12, 10 ms (7x7x1024). ---


def _blocks(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """Convolve blocks of neighbouring groups, each block as one dense convolution."""
    return _by_block(geometry, plain, x, kernel)


def _blocks_input(geometry: Geometry, x: Array, kernel: Array, dy: Array) -> Array:
    return _by_block(geometry, PLAIN.input_gradient, x, kernel, dy)


def _blocks_kernel(geometry: Geometry, x: Array, kernel: Array, dy: Array) -> Array:
    together = _groups_together(geometry.groups, kernel.shape[2])

    def diagonal(one: Geometry, x: Array, dense: Array, dy: Array) -> Array:
        gradient = PLAIN.kernel_gradient(one, x, dense, dy)
        shape = (*dense.shape[:2], together, kernel.shape[2], together, -1)
        by_group = fusion_barrier(gradient).reshape(shape)
        return jnp.concatenate([by_group[:, :, n, :, n] for n in range(together)], axis=-1)

    return _by_block(geometry, diagonal, x, kernel, dy)


def _by_block(geometry: Geometry, function: Callable, x: Array, kernel: Array, *dy: Array) -> Array:
    """Call `function(geometry, x, kernel, ...)` for every block and concatenate the results along the channels."""
    together = _groups_together(geometry.groups, kernel.shape[2])
    count, one = geometry.groups // together, geometry._replace(groups=1)
    blocks = zip(*(jnp.split(array, count, axis=-1) for array in (x, kernel, *dy)), strict=True)
    return jnp.concatenate(
        [
            fusion_barrier(
                function(
                    one,
                    fusion_barrier(part),
                    fusion_barrier(_dense(kernel, together)),
                    *map(fusion_barrier, dy),
                )
            )
            for part, kernel, *dy in blocks
        ],
        axis=-1,
    )


def _groups_together(groups: int, channels: int) -> int:
    """Return the groups per block. A block has at most 16 channels, or 1/16 of all channels if that is more.

    Large blocks waste arithmetic on zeros; many blocks take long to compile. Blocks of 16 channels are 2 to 3 times
    as fast as blocks of 64.

    Args:
      groups: groups of the convolution.
      channels: input channels per group.
    """
    most = max(1, max(16, groups * channels // 16) // channels)
    return max(n for n in range(1, most + 1) if groups % n == 0)


def _dense(kernel: Array, together: int) -> Array:
    """Return a kernel of `together` groups [KH, KW, I, O] as one dense kernel [KH, KW, together I, O].

    Weights between different groups are zero.
    """
    height, width, inputs, outputs = kernel.shape
    by_group = kernel.reshape(height, width, 1, inputs, together, -1)
    diagonal = jnp.eye(together, dtype=kernel.dtype).reshape(1, 1, together, 1, together, 1)
    return (by_group * diagonal).reshape(height, width, together * inputs, outputs)


BLOCKS = ConvAlgorithm(_blocks, _blocks_input, _blocks_kernel)

# --- 3x3. y, dx, dkernel fall from 37, 37, 39 to 16, 16, 15 ms (56x56x64), and from 18, 19, 20 to 10, 12, 10 ms
# (14x14x256). ---

WINOGRAD = _widened(
    ConvAlgorithm(
        lambda geometry, x, kernel: winograd.convolve(x, kernel),
        lambda geometry, x, kernel, dy: winograd.input_gradient(kernel, dy),
        lambda geometry, x, kernel, dy: winograd.kernel_gradient(x, dy),
    )
)
