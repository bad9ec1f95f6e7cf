"""Convolutions, with the fastest algorithm for the platform.

On CPU, `_algorithm` chooses one of conv_algorithms.py by shape; its comments have the times that decided. On GPU,
cuDNN computes all convolutions; only strided stems are reshaped first (space_to_depth.py).
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from flax_resnet.ops import dispatch
from flax_resnet.ops.conv_algorithms import (
    BLOCKS,
    EVERY_PIXEL,
    PATCHES,
    PLAIN,
    POINTWISE,
    RUNS,
    WINOGRAD,
    ConvAlgorithm,
    Geometry,
    plain,
)
from flax_resnet.ops.space_to_depth import space_to_depth

Array = jax.Array

FEW_PIXELS = 512
FEW_CHANNELS = 4


def convolve(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """Convolve [N, H, W, I] with [KH, KW, I / groups, O], with the fastest algorithm for the platform."""
    if dispatch.has_own_form(x, "cpu"):
        return _convolve(geometry, x, kernel)
    stem = geometry.stride > 1 and x.shape[-1] <= FEW_CHANNELS
    if stem and geometry.dilation == geometry.groups == 1 and dispatch.has_own_form(x, "gpu"):
        cells = space_to_depth(x, kernel, stride=geometry.stride, padding=geometry.padding)
        return plain(Geometry(1, 0, 1, 1), *cells)
    contracts = kernel.shape[:2] == (1, 1) and kernel.shape[2] > kernel.shape[3]
    if contracts and geometry == EVERY_PIXEL and dispatch.gpu_form("input_gradient", x) == "dot":
        return _with_dot_gradient(x, kernel)
    return plain(geometry, x, kernel)


@jax.custom_vjp
def _with_dot_gradient(x: Array, kernel: Array) -> Array:
    """Convolve 1x1. The input gradient is a matrix product, with which XLA can fuse what follows."""
    return plain(EVERY_PIXEL, x, kernel)


def _dot_gradient(residuals: tuple, dy: Array) -> tuple:
    x, kernel = residuals
    (dkernel,) = jax.vjp(partial(plain, EVERY_PIXEL, x), kernel)[1](dy)
    return jnp.einsum("nhwo,io->nhwi", dy, kernel[0, 0]), dkernel


_with_dot_gradient.defvjp(
    lambda x, kernel: (_with_dot_gradient(x, kernel), (x, kernel)), _dot_gradient
)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(geometry: Geometry, x: Array, kernel: Array) -> Array:
    forward = _algorithm(geometry, x, kernel).forward
    return dispatch.on_cpu(partial(forward, geometry), partial(plain, geometry), x, kernel)


def _convolve_forward(geometry: Geometry, x: Array, kernel: Array) -> tuple:
    return _convolve(geometry, x, kernel), (x, kernel)


def _convolve_backward(geometry: Geometry, residuals: tuple, dy: Array) -> tuple:
    _, *ours = _algorithm(geometry, *residuals)
    _, *xlas = PLAIN
    return tuple(
        dispatch.on_cpu(partial(our, geometry), partial(xla, geometry), *residuals, dy)
        for our, xla in zip(ours, xlas, strict=True)
    )


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _algorithm(geometry: Geometry, x: Array, kernel: Array) -> ConvAlgorithm:
    """Choose the algorithm on CPU by shape."""
    height, width, inputs, outputs = kernel.shape
    stride, padding, dilation, groups = geometry
    if groups > 1:
        # In every named network, one channel per group is a blur pool, a fixed filter: leave it to XLA.
        return BLOCKS if dispatch.pins_layout() and inputs > 1 else PLAIN
    if height == width == 1 and padding == 0:
        return POINTWISE
    # XLA runs a 3x3 on a 2x2 map of 256 or more channels at 1 GFLOP/s: 1.8 s for 512 channels at batch 64, but 8
    # ms as a dot. On a 1x1 map, eight of nine taps see only padding.
    if dilation == 1 and x.shape[1] * x.shape[2] <= 4:
        return PATCHES
    # With few pixels, Winograd's transform of the kernel costs more than it saves. One image of 7x7x512 takes
    # 4.5 ms by Winograd, 2.2 by XLA and 1.7 as patches; one of 14x14x256 takes 2.2, 1.4 and 1.5 ms.
    if dilation == 1 and math.prod(x.shape[:3]) < FEW_PIXELS:
        return PATCHES
    same_3x3 = (height, width, stride, padding, dilation) == (3, 3, 1, 1, 1)
    # With few channels, Winograd's transforms cost more than they save. Times of y, dx and dkernel together on an
    # Intel Xeon (AVX-512), with and without Winograd: 32x32, batch 128, 32 to 32 channels, 55 and 45 ms; 64 to 64
    # channels, 146 and 176 ms; 15x15, batch 500, 32 to 128 channels, 181 and 120 ms.
    narrow = min(inputs, outputs) < 64
    if same_3x3 and not narrow and x.dtype.itemsize <= 4 and dispatch.pins_layout():
        return WINOGRAD
    return RUNS if dispatch.pins_layout() else PLAIN
