"""Algorithms for convolutions, and the choice among them.

An algorithm is a row of three functions: forward, input gradient, kernel gradient. On CPU, `_algorithm` chooses one
by shape.
Figures are medians on two cores of an AMD EPYC (Zen 4, AVX-512), float32, batch 16, freed memory kept, against
what XLA does of itself (jaxlib 0.10), unless they name another machine: those are against XLA's own kernels, which
`dispatch.compiler_options` chooses. On GPU, only strided stems are not left to cuDNN as they are
(space_to_depth.py).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flax_resnet.ops import dispatch, winograd
from flax_resnet.ops.dispatch import fusion_barrier
from flax_resnet.ops.space_to_depth import space_to_depth

Array = jax.Array

FEW_PIXELS = 512
FEW_CHANNELS = 4


class Geometry(NamedTuple):
    """How a kernel goes over a map, the same in both directions; as in `convolution`."""

    stride: int
    padding: int
    dilation: int
    groups: int


class ConvAlgorithm(NamedTuple):
    """How a convolution is computed.

    Attributes:
      forward: (geometry, x, kernel) to y.
      input_gradient: (geometry, x, kernel, dy) to dx.
      kernel_gradient: (geometry, x, kernel, dy) to the gradient of the kernel.
    """

    forward: Callable
    input_gradient: Callable
    kernel_gradient: Callable


def convolve(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """Convolves [N, H, W, I] with [KH, KW, I / groups, O], as the platform does it best."""
    if dispatch.has_own_form(x, "cpu"):
        return _convolve(geometry, x, kernel)
    stem = geometry.stride > 1 and x.shape[-1] <= FEW_CHANNELS
    if stem and geometry.dilation == geometry.groups == 1 and dispatch.has_own_form(x, "gpu"):
        cells = space_to_depth(x, kernel, stride=geometry.stride, padding=geometry.padding)
        return plain(Geometry(1, 0, 1, 1), *cells)
    return plain(geometry, x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(geometry: Geometry, x: Array, kernel: Array) -> Array:
    forward = _algorithm(geometry, x, kernel).forward
    return dispatch.on_cpu(partial(forward, geometry), partial(plain, geometry), x, kernel)


def _convolve_forward(geometry: Geometry, x: Array, kernel: Array) -> tuple:
    return _convolve(geometry, x, kernel), (x, kernel)


def _convolve_backward(geometry: Geometry, kept: tuple, dy: Array) -> tuple:
    _, *ours = _algorithm(geometry, *kept)
    _, *xlas = PLAIN
    return tuple(
        dispatch.on_cpu(partial(our, geometry), partial(xla, geometry), *kept, dy)
        for our, xla in zip(ours, xlas, strict=True)
    )


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _algorithm(geometry: Geometry, x: Array, kernel: Array) -> ConvAlgorithm:
    """Chooses by shape."""
    height, width, inputs, outputs = kernel.shape
    stride, padding, dilation, groups = geometry
    if groups > 1:
        # One channel per group is, in every named network, a filter without gradient (blur pool): left alone.
        return BLOCKS if dispatch.pins_layout() and inputs > 1 else PLAIN
    if height == width == 1 and padding == 0:
        return POINTWISE
    # XLA runs a 3x3 on a 2x2 map of 256 or more channels at 1 GFLOP/s (1.8 s for 512 channels at batch
    # 64, against 8 ms as a dot); on a 1x1 map eight of nine taps only ever see padding.
    if dilation == 1 and x.shape[1] * x.shape[2] <= 4:
        return PATCHES
    # What a kernel's transform costs, few pixels do not repay. One image, 7x7x512: 4.5 ms by Winograd, 2.2 by XLA,
    # 1.7 as patches; 14x14x256: 2.2, 1.4, 1.5.
    if dilation == 1 and math.prod(x.shape[:3]) < FEW_PIXELS:
        return PATCHES
    same_3x3 = (height, width, stride, padding, dilation) == (3, 3, 1, 1, 1)
    # The transforms then cost more than they save. On an Intel Xeon (AVX-512), by Winograd and otherwise: 32x32, 32
    # to 32 channels, batch 128, 55 and 45 ms for all three; 64 to 64 146 and 176; 15x15, 32 to 128, batch 500, 181
    # and 120.
    narrow = min(inputs, outputs) < 64
    if same_3x3 and not narrow and x.dtype.itemsize <= 4 and dispatch.pins_layout():
        return WINOGRAD
    return RUNS if dispatch.pins_layout() else PLAIN


# --- XLA's own ---


def plain(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """Convolves by XLA's own operation."""
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
    """Return the algorithm computed in float32 at least, as XLA's own operation on CPU is: less loses digits."""

    def widened(function: Callable) -> Callable:
        def run(geometry: Geometry, *arrays: Array) -> Array:
            wide = jnp.promote_types(arrays[0].dtype, jnp.float32)
            return function(geometry, *(x.astype(wide) for x in arrays)).astype(arrays[0].dtype)

        return run

    return ConvAlgorithm(*map(widened, algorithm))


PLAIN = _differentiated(plain)

# --- 1x1 as a dot. 56x56, 64 to 256 channels: 20, 22, 57 ms for y, dx, dkernel become 9, 9, 13. ---


def _dot(x: Array, y: Array, over_x: tuple, over_y: tuple) -> Array:
    over = ((over_x, over_y), ((), ()))
    # Asked for a bfloat16 result, XLA:CPU multiplies in float32: 160 to 190 GFLOP/s. Asked for float32, it takes
    # the processor's bfloat16 instructions: 270 to 380 for y and dx.
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
    # The narrower operand is the one that is worth transposing: 120 against 84 GFLOP/s for 64 x 256 channels.
    if x.shape[-1] <= dy.shape[-1]:
        return _dot(x, dy, pixels, pixels)[None, None]
    return _dot(dy, x, pixels, pixels).T[None, None]


def _every(stride: int, x: Array) -> Array:
    return x[:, ::stride, ::stride]


POINTWISE = ConvAlgorithm(_pointwise, _pointwise_input, _pointwise_kernel)

# --- tiny maps, and few pixels in all ---


def _patches(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """Gathers the taps of each output position and multiplies them with the kernel in one dot."""
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
        # A stride and padding that no network here has.
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

# --- kernel gradients of some images at a time. XLA's goes over the whole batch, and waits for memory where that
# does not fit the cache; with few images it has little to do at once. On two cores of an Intel Xeon (AVX-512):
# batch 500, 31x31, 24 to 32 channels takes 104 ms at once, 60 in 16 runs, 65 in 64; batch 128, 32x32, 16 to 16
# channels 12, in 4 runs 8, in 32 16; 48 to 48 53, 38, 56; batch 16, 56x56 to 28x28, 128 to 128 23 at once, in 4
# runs 30, in 16 64; a stem of 224x224 38, 51, 108. ---

RUN = 32  # images
MOST = 32  # runs, each a convolution to be compiled


def _runs_kernel(geometry: Geometry, x: Array, kernel: Array, dy: Array) -> Array:
    """Sums the kernel gradients of runs of images."""
    parts = min(MOST, math.ceil(len(x) / RUN))
    size = math.ceil(len(x) / parts)
    runs = [
        PLAIN.kernel_gradient(geometry, x[first : first + size], kernel, dy[first : first + size])
        for first in range(0, len(x), size)
    ]
    return sum(map(fusion_barrier, runs[1:]), fusion_barrier(runs[0]))


RUNS = _widened(PLAIN._replace(kernel_gradient=_runs_kernel))

# --- groups. 56x56x128 in 32: 131, 132, 14,776 ms become 25, 22, 27; 7x7x1024: 15, 16, 1,794 become 12, 12, 10. ---


def _blocks(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """Convolves blocks of neighbouring groups, each as one dense convolution."""
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
    """Calls a function of (geometry, x, kernel, ...) for every block, and joins what it returns by channels."""
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
    """Returns how many groups of so many channels make a block: at most 16 channels, or a sixteenth of all.

    What is dense costs arithmetic, and what is many costs compilation. 16 channels were 2 to 3 times as fast as 64.
    """
    most = max(1, max(16, groups * channels // 16) // channels)
    return max(n for n in range(1, most + 1) if groups % n == 0)


def _dense(kernel: Array, together: int) -> Array:
    """Returns the kernel of so many groups [KH, KW, I, O] as one [KH, KW, together I, O], zero between groups."""
    height, width, inputs, outputs = kernel.shape
    by_group = kernel.reshape(height, width, 1, inputs, together, -1)
    diagonal = jnp.eye(together, dtype=kernel.dtype).reshape(1, 1, together, 1, together, 1)
    return (by_group * diagonal).reshape(height, width, together * inputs, outputs)


BLOCKS = ConvAlgorithm(_blocks, _blocks_input, _blocks_kernel)

# --- 3x3. 56x56x64: 37, 37, 39 ms become 16, 16, 15; 14x14x256: 18, 19, 20 become 10, 12, 10. ---

WINOGRAD = _widened(
    ConvAlgorithm(
        lambda geometry, x, kernel: winograd.convolve(x, kernel),
        lambda geometry, x, kernel, dy: winograd.input_gradient(kernel, dy),
        lambda geometry, x, kernel, dy: winograd.kernel_gradient(x, dy),
    )
)
