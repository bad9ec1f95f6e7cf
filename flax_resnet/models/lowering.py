"""What a convolution and a max-pool are made of: XLA's own operations, and on CPU what was measured to be faster.

XLA's kernels for GPU and TPU are left alone. On CPU a convolution is a row of three functions, its `Way`:
forward, input gradient, kernel gradient. `_way` chooses by shape. Figures are medians on two cores of an AMD
EPYC (Zen 4, AVX-512), float32, against XLA's own in the same run; `python -m benchmarks.peers` compares whole
networks.

On one device the arrays that go in and come out are pinned to the layout that their shape says: left to itself,
XLA chooses layouts for the dots that make everything around them transpose (a step of ResNet-18 took 4.6 s,
pinned 1.7). A pin makes XLA gather an array that is spread over devices, so several devices do without, and
without what needs it.

The environment variable FLAX_RESNET_LOWERING turns all of it off ("plain"), or on for several devices too
("cpu"). It is read when a function is traced; what `jit` has compiled stays as it is. What is lowered here has
gradients of any order, but no forward mode (`jax.jvp`) on CPU; "plain" has both.
"""

import functools
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from flax_resnet.errors import ConfigError
from flax_resnet.models import winograd

Array = jax.Array

SWITCH = "FLAX_RESNET_LOWERING"
CHOICES = ("auto", "plain", "cpu")


class Geometry(NamedTuple):
    """How a kernel goes over a map, the same in both directions; as in `convolution`."""

    stride: int
    padding: int
    dilation: int
    groups: int


class Way(NamedTuple):
    """How a convolution is computed.

    Attributes:
      forward: (x, kernel, geometry) to y.
      input_gradient: (x, kernel, dy, geometry) to dx.
      kernel_gradient: (x, kernel, dy, geometry) to the gradient of the kernel.
    """

    forward: Callable
    input_gradient: Callable
    kernel_gradient: Callable


def convolve(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolves [N, H, W, I] with [KH, KW, I / groups, O], as the platform does it best."""
    return _convolve(x, kernel, geometry) if _adapts() else plain(x, kernel, geometry)


def max_pool(x: Array, size: int, stride: int, padding: int) -> Array:
    """Takes the maximum over windows of [N, H, W, C]; the padding never wins."""
    adapts = _adapts() and _on_one_device()
    return (_max_pool if adapts else _plain_max_pool)(x, size, stride, padding)


def _adapts() -> bool:
    """Whether anything is lowered in its own way: on CPU, unless the environment says "plain".

    Elsewhere the operations stay bare, so that every transformation of JAX, jvp included, goes through them.
    """
    choice = os.environ.get(SWITCH, "auto")
    if choice not in CHOICES:
        raise ConfigError(f"{SWITCH}={choice}: must be one of {', '.join(CHOICES)}")
    return choice == "cpu" or (choice == "auto" and _devices()[0] == "cpu")


def _on_one_device() -> bool:
    return os.environ.get(SWITCH) == "cpu" or _devices()[1] == 1


@functools.cache
def _devices() -> tuple[str, int]:
    """Returns the platform and the number of its devices; where none answers, shapes can still be traced."""
    try:
        return jax.default_backend(), jax.device_count()
    except RuntimeError:
        return "", 0


def _pinned(x: Array) -> Array:
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def _on_cpu(function: Callable, otherwise: Callable, *arguments: Array) -> Array:
    """Calls one function where the program runs on CPU, with pinned layouts, and another elsewhere.

    The program may be lowered for another platform than the one it is traced on (`jax.export`).
    """
    pin = _pinned if _on_one_device() else lambda x: x
    return lax.platform_dependent(
        *arguments, cpu=lambda *xs: pin(function(*map(pin, xs))), default=otherwise
    )


# --- convolution ---


def plain(x: Array, kernel: Array, geometry: Geometry) -> Array:
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


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, geometry: Geometry) -> Array:
    way = _way(x, kernel, geometry)
    given = (x, kernel)
    return _on_cpu(
        partial(_at, way.forward, geometry), partial(_at, PLAIN.forward, geometry), *given
    )


def _at(function: Callable, geometry: Geometry, *arguments: Array) -> Array:
    return function(*arguments, geometry)


def _convolve_forward(x: Array, kernel: Array, geometry: Geometry) -> tuple:
    return _convolve(x, kernel, geometry), (x, kernel)


def _convolve_backward(geometry: Geometry, kept: tuple, dy: Array) -> tuple:
    way, given = _way(*kept, geometry), (*kept, dy)
    # Apart from one another, so that what nobody asks for, such as the gradient of the images, is not computed.
    return tuple(
        _on_cpu(partial(_at, ours, geometry), partial(_at, xlas, geometry), *given)
        for ours, xlas in zip(way[1:], PLAIN[1:], strict=True)
    )


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _differentiated(forward: Callable) -> Way:
    """Returns the way whose gradients JAX derives from its forward function."""

    def input_gradient(x: Array, kernel: Array, dy: Array, geometry: Geometry) -> Array:
        return jax.vjp(lambda x: forward(x, kernel, geometry), x)[1](dy)[0]

    def kernel_gradient(x: Array, kernel: Array, dy: Array, geometry: Geometry) -> Array:
        return jax.vjp(lambda kernel: forward(x, kernel, geometry), kernel)[1](dy)[0]

    return Way(forward, input_gradient, kernel_gradient)


def _way(x: Array, kernel: Array, geometry: Geometry) -> Way:
    """Chooses by shape."""
    height, width, inputs, outputs = kernel.shape
    stride, padding, dilation, groups = geometry
    if groups > 1:
        # By themselves, the 3x3 of ResNeXt's first stage (56x56x128, 32 groups, batch 16) takes 132 ms, and its
        # kernel gradient 14.8 s. One channel per group is a filter without gradient (blur pool): left alone.
        return BLOCKS if _on_one_device() and inputs > 1 else PLAIN
    if height == width == 1 and padding == 0:
        return POINTWISE
    # XLA runs a 3x3 on a 2x2 map of 256 or more channels at 1 GFLOP/s (1.8 s for 512 channels at batch
    # 64, against 8 ms as a dot); on a 1x1 map eight of nine taps only ever see padding.
    if x.shape[1] * x.shape[2] <= 4 and dilation == 1:
        return PATCHES
    same_3x3 = (height, width, stride, padding, dilation) == (3, 3, 1, 1, 1)
    narrow = min(inputs, outputs) < 32  # the transforms then cost more than they save
    if same_3x3 and not narrow and x.dtype == jnp.float32 and _on_one_device():
        return WINOGRAD
    return PLAIN


def _dot(x: Array, y: Array, over_x: tuple, over_y: tuple) -> Array:
    return lax.dot_general(x, y, ((over_x, over_y), ((), ())))


def _pointwise(x: Array, kernel: Array, geometry: Geometry) -> Array:
    return _dot(_every(x, geometry.stride), kernel[0, 0], (3,), (0,))


def _pointwise_input(x: Array, kernel: Array, dy: Array, geometry: Geometry) -> Array:
    stride = geometry.stride
    dx = _dot(dy, kernel[0, 0], (3,), (1,))
    if stride == 1:
        return dx
    sides = [
        (0, n - (m - 1) * stride - 1, stride - 1)
        for n, m in zip(x.shape[1:3], dy.shape[1:3], strict=True)
    ]
    return lax.pad(dx, jnp.zeros((), dx.dtype), ((0, 0, 0), *sides, (0, 0, 0)))


def _pointwise_kernel(x: Array, kernel: Array, dy: Array, geometry: Geometry) -> Array:
    del kernel
    x, pixels = _every(x, geometry.stride), (0, 1, 2)
    # The narrower operand is the one that is worth transposing: 120 against 84 GFLOP/s for 64 x 256 channels.
    if x.shape[-1] <= dy.shape[-1]:
        return _dot(x, dy, pixels, pixels)[None, None]
    return _dot(dy, x, pixels, pixels).T[None, None]


def _every(x: Array, stride: int) -> Array:
    return x[:, ::stride, ::stride]


def _patches(x: Array, kernel: Array, geometry: Geometry) -> Array:
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


BLOCK = 64  # channels; dense, so that a group of 4 costs 16 times its arithmetic and still a third of the time


def _blocks(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolves blocks of neighbouring groups densely, with zeros between the groups."""
    groups = geometry.groups
    height, width, inputs, features = kernel.shape
    # The most groups to a block that divide their number and stay within its channels.
    together = max(
        n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * inputs <= BLOCK)
    )
    blocks, outputs = groups // together, features // groups
    by_group = kernel.reshape(height, width, 1, inputs, blocks, together, outputs)
    diagonal = jnp.eye(together, dtype=kernel.dtype).reshape(1, 1, together, 1, 1, together, 1)
    dense = (by_group * diagonal).reshape(height, width, together * inputs, blocks, -1)
    return jnp.concatenate(
        [
            plain(part, dense[:, :, :, block], geometry._replace(groups=1))
            for block, part in enumerate(jnp.split(x, blocks, axis=-1))
        ],
        axis=-1,
    )


PLAIN, PATCHES, BLOCKS = _differentiated(plain), _differentiated(_patches), _differentiated(_blocks)
# 56x56, 64 to 256 channels, batch 16: 18, 21, 45 ms for y, dx, dkernel become 8, 9, 14 ms.
POINTWISE = Way(_pointwise, _pointwise_input, _pointwise_kernel)
# 56x56x64, batch 16: 37, 37, 42 ms become 16, 16, 15; 14x14x256: 18, 19, 20 become 10, 12, 10.
WINOGRAD = Way(
    lambda x, kernel, geometry: winograd.convolve(x, kernel),
    lambda x, kernel, dy, geometry: winograd.input_gradient(kernel, dy),
    lambda x, kernel, dy, geometry: winograd.kernel_gradient(x, dy),
)


# --- max-pool ---


def _plain_max_pool(x: Array, size: int, stride: int, padding: int) -> Array:
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    # The initial value must be a plain constant: only then does JAX know how to differentiate this.
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, sides)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: Array, size: int, stride: int, padding: int) -> Array:
    def separable(x: Array) -> Array:
        return _window_maxima(_padded(x, padding), size, stride)[1]

    return _on_cpu(separable, lambda x: _plain_max_pool(x, size, stride, padding), x)


def _max_pool_forward(x: Array, size: int, stride: int, padding: int) -> tuple:
    return _max_pool(x, size, stride, padding), x


def _max_pool_backward(size: int, stride: int, padding: int, x: Array, dy: Array) -> tuple:
    # 112x112x64, batch 16: 100 ms by XLA's select-and-scatter, 29 so.
    def separable(x: Array, dy: Array) -> Array:
        padded = _padded(x, padding)
        rows, y = _window_maxima(padded, size, stride)
        along_height = _pinned(_to_first_maximum(rows, y, dy, size, stride, axis=1))
        dx = _to_first_maximum(padded, rows, along_height, size, stride, axis=2)
        return dx[:, padding : padding + x.shape[1], padding : padding + x.shape[2]]

    def plains(x: Array, dy: Array) -> Array:
        return jax.vjp(lambda x: _plain_max_pool(x, size, stride, padding), x)[1](dy)[0]

    return (_on_cpu(separable, plains, x, dy),)


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
        return winograd.apart(first)

    rows = along(winograd.apart(padded), 2)
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
        phases.append(winograd.apart(total))
    dx = jnp.stack(phases, axis + 1).reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
    return lax.slice_in_dim(dx, 0, length, 1, axis)
