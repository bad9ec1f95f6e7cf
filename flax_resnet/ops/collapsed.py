"""A 1x1 convolution and the batch normalisation behind it, computed as one product.

The convolution has more outputs than inputs, ``y = x W`` with x [M, K] and W [K, C], K < C, where M counts pixels.
Nothing nonlinear stands between it and the normalisation. So the moments of y, the normalised map and all gradients
follow from K x K and K x C products. The wide map y is never written, never read for its statistics, and not kept
for the gradient:

    usual      x --W--> y --read--> mean, var           4 passes over the wide map
                        y --read--> normalise --> z

    collapsed  x --read--> mu, C --W--> mean, var       1 pass
               x --W diag(f)--> z

Forward, with ``mu = mean(x)`` and the covariance ``C = x^T x / M - mu mu^T``:

    mean = mu W      var = diag(W^T C W)      f = scale / sqrt(var + epsilon)
    z = x (W diag(f)) + (bias - mu W diag(f))

Backward, given ``g = dL/dz`` and the cotangents dmean and dvar, with ``G = (x - mu)^T g``:

    dbias = sum(g)      dscale = diag(W^T G) / sqrt(var + epsilon)
    d = (f dscale / sqrt(var + epsilon) - 2 dvar) / M
    dx = g (W diag(f))^T - (x - mu) W diag(d) W^T - W (f sum(g) - dmean) / M
    dW = G diag(f) - M C W diag(d) + mu dmean^T

In exact arithmetic this is the usual form. In bfloat16, five details keep its digits:

1. The statistics are those of the rounded W, which the usual form multiplies by.
2. The bias of z is computed from the rounded ``W diag(f)``. Otherwise each channel of z is off by the mean of x
   times a rounding error: 5e-3 deviations behind a ReLU, with this detail 1e-5.
3. The K x K and K x C sums over pixels are float32 sums of chunks. A tensor core truncates when it adds to a long
   sum: one sum over 800,000 pixels would be 3e-3 too low.
4. The variance has a floor. Where W is almost orthogonal to the variation of x, the variance is a difference of
   equal numbers, and its error could scale a channel by 1000.
5. The gradient multiplies by the rounded matrices of the forward pass, and G and dW stay float32. The derivative
   that JAX would derive rounds G to bfloat16: dW is then wrong by a factor where g has a mean.

In float32 the form loses digits that the usual one keeps: 6e-5 of the variance if the mean of x is 10 deviations,
in place of 2e-7. So by default it is taken only for bfloat16 (`collapses`).

On several devices, each keeps its own sums over pixels; only vectors cross. The variances are joined as in Chan,
Golub and LeVeque 1983, "Algorithms for computing the sample variance", section 3.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from flax_resnet.ops import dispatch
from flax_resnet.ops.conv import convolve
from flax_resnet.ops.conv_algorithms import EVERY_PIXEL

Array = jax.Array

# The relative rounding error of the variance before it is a difference of equal numbers. A channel meets the floor
# if its mean is some 360 deviations or more. Networks that we looked at have variances above 0.16 of that quantity.
FLOOR = 2.0**-17
# Pixels whose products a tensor core sums. x^T x has at least 8 K, because its sum is written once per chunk: it
# then takes at most a quarter of the bytes of x.
GRAM_CHUNK, CROSS_CHUNK = 1024, 16384


def collapses(choice: str, x: Array, outputs: int, groups: int, stride: int = 1) -> bool:
    """Return whether to compute a 1x1 convolution and its batch normalisation in the collapsed form.

    Args:
      choice: "auto": in bfloat16 on a GPU, where the form moves fewer bytes; "on": wherever the convolution has
        more outputs than inputs; "off": never. XLA's own operations (FLAX_RESNET_OPS=plain) never have it.
      x: [N, H, W, K], the input of the convolution.
      outputs: its output channels.
      groups: groups of images with statistics of their own.
      stride: step of the convolution.
    """
    (images, height, width, inputs), known = x.shape, dispatch.batch_shards()
    shards = known or 1
    parts = max(groups, shards)
    if choice == "off" or dispatch.is_plain() or outputs <= inputs:
        return False
    if parts % min(groups, shards) or images % parts:  # a sum would cross devices
        return False
    if choice == "on":
        return True
    pixels = images // parts * -(-height // stride) * -(-width // stride)  # of one sum
    gains = outputs >= 2 * inputs and pixels >= 8 * inputs
    # Without the number of devices, XLA might gather the map for its sums.
    return gains and known > 0 and x.dtype == jnp.bfloat16 and dispatch.has_own_form(x, "gpu")


class Scope(NamedTuple):
    """What is normalised together, and how.

    Attributes:
      epsilon: added to the variance.
      groups: runs of consecutive images with statistics of their own; must divide N.
      shards: devices over which N is split; `groups` must divide it or be a multiple of it.
      pools: whether to return the mean of each image of the result, too.
    """

    epsilon: float
    groups: int = 1
    shards: int = 1
    pools: bool = False


class _Moments(NamedTuple):
    """The moments of y = x W in G groups of images, each of Q parts on different devices.

    Attributes:
      mean: [G, C].
      var: [G, C], biased.
      is_exact: [G, C], False where the variance met its floor.
      distance: [G, Q, C], the mean of a part minus the mean of its group; None for one part.
      mu: [G, Q, K], the mean of x.
      spread: [G, Q, K, C], the covariance of x times W.
    """

    mean: Array
    var: Array
    is_exact: Array
    distance: Array | None
    mu: Array
    spread: Array


class _Saved(NamedTuple):
    """What the gradient needs.

    Attributes:
      x: [N, H, W, K].
      kernel: W, rounded, [K, C], of x's dtype.
      folded: [G, K, C], ``W diag(factor)`` of x's dtype.
      factor: [G, C], scale / deviation.
      inverse: [G, C], 1 / sqrt(var + epsilon).
      moments: of y.
    """

    x: Array
    kernel: Array
    folded: Array
    factor: Array
    inverse: Array
    moments: _Moments


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def collapsed_batch_norm(
    x: Array, kernel: Array, scale: Array, bias: Array, about: Array, scope: Scope
) -> tuple[Array, Array, Array, Array | None]:
    """Convolve 1x1 and normalise by the moments of the result, without computing it.

    Args:
      x: [N, H, W, K].
      kernel: [K, C], at least float32.
      scale: [C], of the kernel's dtype, which is the dtype of the moments.
      bias: [C].
      about: [C], an estimate of the mean, as in `batch_normalize`; used if there are several shards.
      scope: what is normalised together.

    Returns:
      The normalised map [N, H, W, C] of x's dtype; mean and biased variance [groups, C]; and the means of the
      images [N, C] of the moments' dtype, or None.
    """
    return _collapsed(x, kernel, scale, bias, about, scope)[0]


def _forward(*arguments: Any) -> tuple[tuple[Array, Array, Array, Array | None], _Saved]:
    # With symbolic zeros, differentiable arguments come as pairs of a value and whether it is perturbed.
    return _collapsed(*(getattr(argument, "value", argument) for argument in arguments))


def _collapsed(
    x: Array, kernel: Array, scale: Array, bias: Array, about: Array, scope: Scope
) -> tuple[tuple[Array, Array, Array, Array | None], _Saved]:
    wide = scale.dtype
    narrow = kernel.astype(x.dtype)
    kernel = narrow.astype(wide)
    # XLA computes this sum in the kernel that writes x. Without the barrier, it would also store x before its
    # activation, and compute the activation again in each product.
    total = _in_parts(x, scope).sum(axis=2, dtype=wide)
    x = lax.optimization_barrier(x)
    moments = _moments(_in_parts(x, scope), total, kernel, about)
    inverse = lax.rsqrt(moments.var + scope.epsilon)
    factor = scale[None] * inverse
    folded = (kernel[None] * factor[:, None, :]).astype(x.dtype)
    shift = bias[None] - _down(moments.mu.mean(axis=1), folded.astype(wide))  # [G, C]
    z = _per_group(x, folded) + _along_images(shift.astype(x.dtype), x)
    pooled = None
    if scope.pools:
        means = x.mean(axis=(1, 2), dtype=wide).reshape(scope.groups, -1, x.shape[-1])
        pooled = jnp.matmul(means, folded.astype(wide), precision=lax.Precision.HIGHEST)
        pooled = (pooled + shift[:, None]).reshape(len(x), -1)
    saved = _Saved(x, narrow, folded, factor, inverse, moments)
    return (z, moments.mean, moments.var, pooled), saved


def _moments(parts: Array, total: Array, kernel: Array, about: Array) -> _Moments:
    """Return the moments of x W for x in parts, [G, Q, M, K], with their sums over M."""
    inputs, wide = len(kernel), kernel.dtype
    _, per_group, pixels, _ = parts.shape
    mu = total / pixels
    gram = sum_of_products(parts, parts, max(GRAM_CHUNK, 8 * inputs), wide) / pixels
    covariance = gram - mu[..., :, None] * mu[..., None, :]
    spread = jnp.matmul(covariance, kernel, precision=lax.Precision.HIGHEST)
    var = (kernel[None, None] * spread).sum(axis=-2)  # [G, Q, C], of each part
    mean = _down(mu.mean(axis=1), kernel[None])
    if per_group == 1:
        var, distance = var[:, 0], None
    else:
        own_mean = _down(mu, kernel[None, None])
        distance = own_mean - mean[:, None]
        var = (var + jnp.square(own_mean - about[None, None])).mean(axis=1)
        var -= jnp.square(mean - about[None])
    # A sum, because XLA computes it with the covariance; `jnp.diagonal` takes a kernel of its own.
    powers = (gram * jnp.eye(inputs, dtype=wide)[None, None]).sum(axis=-1).mean(axis=1)
    least = FLOOR * (_down(powers, jnp.square(kernel)[None]) + jnp.square(mean))
    return _Moments(mean, jnp.maximum(var, least), var >= least, distance, mu, spread)


def _backward(scope: Scope, saved: _Saved, cotangents: tuple) -> tuple:
    x, factor, moments, wide = saved.x, saved.factor, saved.moments, saved.factor.dtype
    # The cotangents of mean and variance are zero in training. XLA would compute their products.
    g, dmean, dvar, dpooled = (None if isinstance(c, SymbolicZero) else c for c in cotangents)
    g = jnp.zeros((*x.shape[:3], saved.folded.shape[-1]), x.dtype) if g is None else g
    if dpooled is not None:
        spread = dpooled[:, None, None, :] / math.prod(x.shape[1:3])
        g = (g.astype(wide) + spread).astype(g.dtype)
    parts, slopes = _in_parts(x, scope), _in_parts(g, scope)
    _, per_group, pixels, _ = parts.shape
    count = per_group * pixels
    kernel, folded = saved.kernel.astype(wide), saved.folded.astype(wide)
    distance = moments.distance

    total = slopes.sum(axis=2, dtype=wide)  # [G, Q, C]
    cross = sum_of_products(parts, slopes, CROSS_CHUNK, wide)  # [G, Q, K, C]
    cross -= moments.mu[..., :, None] * total[..., None, :]
    product = (kernel[None, None] * cross).sum(axis=-2)
    if distance is not None:
        product += distance * total
    dscale, dbias = product.sum(axis=1) * saved.inverse, total.sum(axis=1)  # [G, C]
    slope = factor * dscale * saved.inverse - (0 if dvar is None else 2 * dvar)
    slope = jnp.where(moments.is_exact, slope, 0) / count

    # [G, K, K], of x's dtype
    back = (kernel[None] * -slope[:, None, :]).astype(x.dtype)
    inner = jnp.matmul(back, saved.kernel.T, precision=lax.Precision.HIGHEST)
    constant = (
        -_down(moments.mu, inner.astype(wide)[:, None]) - _along(folded, dbias)[:, None] / count
    )
    dkernel = factor[:, None, None] * cross - pixels * slope[:, None, None] * moments.spread
    if dmean is not None:
        constant += _along(kernel[None], dmean)[:, None] / count
        dkernel += moments.mu[..., :, None] * dmean[:, None, None] / per_group
    if distance is not None:
        far = slope[:, None] * distance  # [G, Q, C]
        own = factor[:, None] * (total - dbias[:, None] / per_group) - pixels * far
        constant -= _along(kernel[None, None], far)
        dkernel += moments.mu[..., :, None] * own[..., None, :]
    (through,) = jax.vjp(lambda x: _per_group(x, saved.folded), x)[1](g)
    # The constant cancels the mean of the first product, so it is added before that is rounded. Its own rounding
    # error has the same sign for all pixels, and is added to the second product. With one rounding per product, as
    # by cuDNN, dx is 2.8e-3 off where g has a mean of 3 deviations; with the constant as one number in the second
    # product, 1.1e-2.
    high = constant.astype(x.dtype)
    low = (constant - high.astype(wide)).astype(x.dtype)
    dx = _per_group(x, inner) + _along_images(low, x) + (through + _along_images(high, x))

    dkernel = dkernel.reshape(scope.shards, -1, *dkernel.shape[2:]).sum(axis=1)  # of each device
    # The gradients of other kernels cross devices in x's dtype, too.
    dkernel = dkernel.astype(x.dtype) if scope.shards > 1 else dkernel
    dkernel = lax.reduce(dkernel, jnp.zeros((), dkernel.dtype), lax.add, (0,)).astype(wide)
    return dx, dkernel, dscale.sum(axis=0), dbias.sum(axis=0), jnp.zeros_like(dscale[0])


collapsed_batch_norm.defvjp(_forward, _backward, symbolic_zeros=True)


def _in_parts(x: Array, scope: Scope) -> Array:
    """Reshape [N, H, W, C] to [groups, Q, M, C]: Q parts of a group, each on one device, of M pixels."""
    per_group = max(1, scope.shards // scope.groups)
    return x.reshape(scope.groups, per_group, -1, x.shape[-1])


def sum_of_products(a: Array, b: Array, chunk: int, wide: Any) -> Array:
    """Return ``a^T b`` over M of [G, Q, M, A] and [G, Q, M, B], as float32 sums of chunks of pixels."""
    pixels = a.shape[2]
    count = next(n for n in range(max(1, pixels // chunk), 0, -1) if pixels % n == 0)
    a, b = (side.reshape(*side.shape[:2], count, -1, side.shape[-1]) for side in (a, b))
    sums = jnp.einsum(
        "gqcma,gqcmb->gqcab", a, b, precision=lax.Precision.HIGHEST, preferred_element_type=wide
    )
    return sums.sum(axis=2)


def _down(vector: Array, matrix: Array) -> Array:
    """Return ``vector matrix`` of [..., A] and [..., A, B]. As a sum, XLA joins several in one kernel."""
    return (vector[..., :, None] * matrix).sum(axis=-2)


def _along(matrix: Array, vector: Array) -> Array:
    """Return ``matrix vector`` of [..., A, B] and [..., B]."""
    return (matrix * vector[..., None, :]).sum(axis=-1)


def _per_group(x: Array, kernels: Array) -> Array:
    """Multiply the pixels [N, H, W, A] of each group by its own kernel [groups, A, B]."""
    if len(kernels) == 1:
        if dispatch.gpu_form("product", x) == "dot":
            return jnp.einsum("nhwa,ab->nhwb", x, kernels[0])
        return convolve(EVERY_PIXEL, x, kernels[:, None])
    y = jnp.matmul(x.reshape(len(kernels), -1, x.shape[-1]), kernels)
    return y.reshape(*x.shape[:3], -1)


def _along_images(vectors: Array, x: Array) -> Array:
    """Broadcast vectors [G, Q, C] over the pixels [N, H, W] of their parts, to [N, 1, 1, C] or [1, 1, 1, C]."""
    flat = vectors.reshape(-1, 1, 1, 1, vectors.shape[-1])
    if len(flat) == 1:
        return flat[0]
    repeated = jnp.broadcast_to(flat, (len(flat), len(x) // len(flat), 1, 1, flat.shape[-1]))
    return repeated.reshape(len(x), 1, 1, -1)
