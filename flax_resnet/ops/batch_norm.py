"""Batch normalisation: the moments of a batch, the normalised map, and a gradient of few passes over the map."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flax_resnet.ops import dispatch

Array = jax.Array
Dtype = Any


PIXELS = (-4, -3, -2)  # the axes of a batch that a channel's statistics are taken over


def batch_normalize(
    x: Array,
    scale: Array,
    bias: Array,
    about: Array,
    epsilon: float,
    act: Callable | None,
    dtype: Dtype,
) -> tuple[Array, Array, Array]:
    """Normalises a map by its own moments, as the platform does it best.

    Args:
      x: [..., N, H, W, C]; the moments are taken over N, H and W.
      scale: [C], at least float32; the moments have its dtype.
      bias: [C].
      about: [C], a guess of the mean, such as the running mean: rounding grows with the distance to it.
      epsilon: added to the variance.
      act: activation of the result, or None.
      dtype: dtype of the result.

    Returns:
      The normalised map [..., N, H, W, C], mean and biased variance [..., 1, 1, 1, C].
    """
    form = _with_own_gradient if dispatch.has_own_form(x, "cpu", "gpu") else _by_moments
    return form(x, scale, bias, about, epsilon, act, dtype)


def normalize(
    x: Array,
    mean: Array,
    var: Array,
    scale: Array,
    bias: Array,
    epsilon: float,
    act: Callable | None,
    dtype: Dtype,
) -> Array:
    """Normalises [..., N, H, W, C], of at least float32, and activates it in `dtype`."""
    factor = lax.rsqrt(var + epsilon) * along_channels(scale, x)
    y = ((x - mean) * factor + along_channels(bias, x)).astype(dtype)
    return act(y) if act else y


def along_channels(vector: Array, x: Array) -> Array:
    """Returns [C] with the axes of [..., C]."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def _by_moments(
    x: Array,
    scale: Array,
    bias: Array,
    about: Array,
    epsilon: float,
    act: Callable | None,
    dtype: Dtype,
) -> tuple[Array, Array, Array]:
    """Normalises [..., N, H, W, C] by its own mean and biased variance [..., 1, 1, 1, C], and returns all three.

    In two passes: E[x²] - E[x]² loses all digits where |mean| is far above the deviation. On GPU, where a pass
    costs most, in one, about the running mean, near which the batch's is found: what rounding adds to the variance
    is some 1e-7 of the square of the distance between them, so that 30 deviations cost 1e-4 of it.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", section 3.
    """
    x = x.astype(scale.dtype)
    if dispatch.has_own_form(x, "gpu"):
        about = along_channels(about, x)
        offset = (x - about).mean(axis=PIXELS, keepdims=True)
        var = jnp.square(x - about).mean(axis=PIXELS, keepdims=True) - jnp.square(offset)
        mean, var = about + offset, jnp.maximum(var, 0)
    else:
        mean = x.mean(axis=PIXELS, keepdims=True)
        var = jnp.square(x - mean).mean(axis=PIXELS, keepdims=True)
    return normalize(x, mean, var, scale, bias, epsilon, act, dtype), mean, var


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _with_own_gradient(*arguments: Any) -> tuple[Array, Array, Array]:
    """Does as `_by_moments`; its gradient reads x and dy once for all sums."""
    return _by_moments(*arguments)


def _own_forward(
    x: Array, scale: Array, bias: Array, about: Array, *static: Any
) -> tuple[tuple, tuple]:
    y, mean, var = _by_moments(x, scale, bias, about, *static)
    return (y, mean, var), (x, scale, bias, mean, var)


def _own_backward(
    epsilon: float, act: Callable | None, dtype: Dtype, kept: tuple, cotangents: tuple
) -> tuple:
    x, scale, bias, mean, var = kept
    dy, dmean, dvar = cotangents
    count = math.prod(x.shape[axis] for axis in PIXELS)
    deviation = lax.rsqrt(var + epsilon)
    factor = deviation * along_channels(scale, x)

    def parts(x: Array, dy: Array) -> tuple[Array, Array]:
        """Returns x centred, and the gradient before the activation."""
        centred = x.astype(scale.dtype) - mean
        if act:
            y = (centred * factor + along_channels(bias, x)).astype(dtype)
            (dy,) = jax.vjp(act, y)[1](dy)
        return centred, dy.astype(scale.dtype)

    centred, before = parts(x, dy)
    on_gpu = dispatch.has_own_form(x, "gpu")
    if not on_gpu:  # once, for three loops: the activation's slope costs more than to write it down
        before = dispatch.fusion_barrier_on_cpu(before)
    total = before.sum(axis=PIXELS, keepdims=True)
    product = (before * centred).sum(axis=PIXELS, keepdims=True)
    if on_gpu:  # once more, where otherwise XLA would write it down and read it twice
        centred, before = parts(*lax.optimization_barrier((x, dy, total, product))[:2])
    slope = (2 * dvar - factor * jnp.square(deviation) * product) / count
    dx = before * factor + centred * slope + (dmean - factor * total) / count
    dscale, dbias = (v.reshape(-1, v.shape[-1]).sum(axis=0) for v in (product * deviation, total))
    return dx.astype(x.dtype), dscale, dbias, jnp.zeros_like(bias)


_with_own_gradient.defvjp(_own_forward, _own_backward)
