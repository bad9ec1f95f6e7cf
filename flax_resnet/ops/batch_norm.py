"""Batch normalisation: the moments, the normalised map, and a gradient that reads the map few times.

Memory traffic limits a training step, so the number of passes over the map decides the speed.
"""

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


PIXELS = (-4, -3, -2)  # the axes N, H, W, over which each channel's statistics are computed


def batch_normalize(
    x: Array,
    scale: Array,
    bias: Array,
    about: Array,
    epsilon: float,
    act: Callable | None,
    dtype: Dtype,
) -> tuple[Array, Array, Array]:
    """Normalise a map by its own moments, with the fastest form for the platform.

    Args:
      x: [..., N, H, W, C]; the moments are taken over N, H and W.
      scale: [C], at least float32; the moments have its dtype.
      bias: [C].
      about: [C], an estimate of the mean, such as the running mean. The rounding error grows with the distance
        between the estimate and the mean.
      epsilon: added to the variance.
      act: activation of the result, or None.
      dtype: dtype of the result.

    Returns:
      The normalised map [..., N, H, W, C], mean and biased variance [..., 1, 1, 1, C].
    """
    form = with_own_gradient if dispatch.has_own_form(x, "cpu", "gpu") else by_moments
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
    """Normalise [..., N, H, W, C], at least float32; cast to `dtype` and apply the activation."""
    y = scaled(
        x, mean, lax.rsqrt(var + epsilon) * along_channels(scale, x), along_channels(bias, x), dtype
    )
    return act(y) if act else y


def scaled(x: Array, mean: Array, factor: Array, bias: Array, dtype: Dtype) -> Array:
    """Return ``(x - mean) factor + bias`` of a map that is at least float32, cast to `dtype`.

    For a narrow dtype, the mean and the bias become one vector. Its rounding error, 6e-8 times the distance of the
    mean from 0 in deviations, is far below that of the dtype.
    """
    if jnp.dtype(dtype).itemsize < 4 and dispatch.has_own_form(x, "gpu"):
        return (x * factor + (bias - mean * factor)).astype(dtype)
    return ((x - mean) * factor + bias).astype(dtype)


def along_channels(vector: Array, x: Array) -> Array:
    """Reshape a vector [C] to broadcast against x [..., C]."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def by_moments(
    x: Array,
    scale: Array,
    bias: Array,
    about: Array,
    epsilon: float,
    act: Callable | None,
    dtype: Dtype,
) -> tuple[Array, Array, Array]:
    """Normalise [..., N, H, W, C] by its own mean and biased variance [..., 1, 1, 1, C]; return all three.

    The default takes two passes, because E[x²] - E[x]² loses all digits when |mean| is far above the deviation.
    On GPU, where a pass costs most, one pass computes the moments about the running mean, which is near the batch
    mean. Rounding then adds about 1e-7 times the squared distance between the two means to the variance: a
    distance of 30 deviations costs 1e-4 of the variance.

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
def with_own_gradient(*arguments: Any) -> tuple[Array, Array, Array]:
    """Compute the same as `by_moments`. The gradient reads x and dy only once to compute all sums."""
    return by_moments(*arguments)


def _own_forward(
    x: Array, scale: Array, bias: Array, about: Array, *static: Any
) -> tuple[tuple, tuple]:
    y, mean, var = by_moments(x, scale, bias, about, *static)
    return (y, mean, var), (x, scale, bias, mean, var)


def _own_backward(
    epsilon: float, act: Callable | None, dtype: Dtype, residuals: tuple, cotangents: tuple
) -> tuple:
    x, scale, bias, mean, var = residuals
    dy, dmean, dvar = cotangents
    count = math.prod(x.shape[axis] for axis in PIXELS)
    deviation = lax.rsqrt(var + epsilon)
    factor = deviation * along_channels(scale, x)

    def parts(x: Array, dy: Array) -> tuple[Array, Array]:
        """Return the centred x, and the gradient with respect to the activation's input."""
        wide = x.astype(scale.dtype)
        if act:
            y = scaled(wide, mean, factor, along_channels(bias, x), dtype)
            (dy,) = jax.vjp(act, y)[1](dy)
        return wide - mean, dy.astype(scale.dtype)

    centred, before = parts(x, dy)
    on_gpu = dispatch.has_own_form(x, "gpu")
    # Three loops read `before`. On CPU, compute it once: writing it to memory costs less than computing the slope
    # of the activation again.
    if not on_gpu:
        before = dispatch.fusion_barrier_on_cpu(before)
    total = before.sum(axis=PIXELS, keepdims=True)
    product = (before * centred).sum(axis=PIXELS, keepdims=True)
    # On GPU, compute `before` again for the last loop: otherwise XLA writes it to memory and reads it twice.
    if on_gpu:
        centred, before = parts(*lax.optimization_barrier((x, dy, total, product))[:2])
    slope = (2 * dvar - factor * jnp.square(deviation) * product) / count
    dx = before * factor + centred * slope + (dmean - factor * total) / count
    dscale, dbias = (v.reshape(-1, v.shape[-1]).sum(axis=0) for v in (product * deviation, total))
    return dx.astype(x.dtype), dscale, dbias, jnp.zeros_like(bias)


with_own_gradient.defvjp(_own_forward, _own_backward)
