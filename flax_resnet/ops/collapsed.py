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

On several devices, each keeps its own sums over pixels; only vectors cross. The variance joins as in Chan, Golub and
LeVeque 1983, "Algorithms for computing the sample variance", section 3.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from flax_resnet.ops import dispatch
from flax_resnet.ops.conv import Geometry, convolve

Array = jax.Array

# The relative rounding error of the variance before it is a difference of equal numbers. Networks that we looked at
# have variances above 0.16 of the same quantity, so they never meet the floor.
FLOOR = 2.0**-17
# Pixels whose products are summed before float32 sums. The sums of x^T x are written once per chunk: with 8 K pixels
# they are a quarter of x.
GRAM_CHUNK, CROSS_CHUNK = 1024, 16384
POINTWISE = Geometry(stride=1, padding=0, dilation=1, groups=1)


def collapses(choice: str, x: Array, outputs: int, groups: int) -> bool:
    """Return whether to compute a 1x1 convolution in the collapsed form.

    Args:
      choice: "auto": in bfloat16 on a GPU, where the form moves fewer bytes; "on": wherever the convolution has more
        outputs than inputs; "off": never.
      x: [N, H, W, K], the input of the convolution.
      outputs: its output channels.
      groups: groups of images with statistics of their own.
    """
    inputs, shards = x.shape[-1], dispatch.batch_shards()
    if choice == "off" or outputs <= inputs or max(groups, shards) % min(groups, shards):
        return False
    if choice == "on":
        return True
    pixels = math.prod(x.shape[:3]) // max(groups, shards)  # of one sum
    narrow = outputs >= 2 * inputs and pixels >= 8 * inputs
    return x.dtype == jnp.bfloat16 and narrow and dispatch.has_own_form(x, "gpu")


class _Saved(NamedTuple):
    """What the gradient needs. G groups of statistics, each of Q parts on different devices.

    Attributes:
      x: [N, H, W, K].
      kernel: [K, C], of x's dtype.
      factor: [G, C], scale / deviation.
      folded: [G, K, C], ``kernel * factor`` of x's dtype.
      mu: [G, Q, K].
      spread: [G, Q, K, C], covariance times kernel.
      distance: [G, Q, C], mean of a part minus mean of its group; None for one part.
      deviation: [G, C], 1 / sqrt(var + epsilon).
      is_exact: [G, C], False where the variance met its floor.
    """

    x: Array
    kernel: Array
    factor: Array
    folded: Array
    mu: Array
    spread: Array
    distance: Array | None
    deviation: Array
    is_exact: Array


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def collapsed_batch_norm(
    x: Array,
    kernel: Array,
    scale: Array,
    bias: Array,
    about: Array,
    epsilon: float,
    groups: int = 1,
    shards: int = 1,
    pools: bool = False,
) -> tuple[Array, Array, Array, Array | None]:
    """Convolve 1x1 and normalise by the moments of the result, without computing it.

    Args:
      x: [N, H, W, K].
      kernel: [K, C], at least float32.
      scale: [C], of the kernel's dtype, which is the dtype of the moments.
      bias: [C].
      about: [C], an estimate of the mean, as in `batch_normalize`; used if there are several shards.
      epsilon: added to the variance.
      groups: runs of consecutive images with statistics of their own; must divide N.
      shards: devices over which N is split; `groups` must divide it or be a multiple of it.
      pools: whether to return the mean of each image of the result, too.

    Returns:
      The normalised map [N, H, W, C] of x's dtype; mean and biased variance [groups, C]; and the means of the images
      [N, C] of the moments' dtype, or None.
    """
    return _collapsed(x, kernel, scale, bias, about, epsilon, groups, shards, pools)[0]


def _forward(*arguments: Any) -> tuple[tuple[Array, Array, Array, Array | None], _Saved]:
    # With symbolic zeros, differentiable arguments come as pairs of a value and whether it is perturbed.
    return _collapsed(*(getattr(argument, "value", argument) for argument in arguments))


def _collapsed(
    x: Array,
    kernel: Array,
    scale: Array,
    bias: Array,
    about: Array,
    epsilon: float,
    groups: int,
    shards: int,
    pools: bool,
) -> tuple[tuple[Array, Array, Array, Array | None], _Saved]:
    wide, (inputs, outputs) = scale.dtype, kernel.shape
    parts = _in_parts(x, groups, shards)  # [G, Q, M, K]
    per_part, pixels = parts.shape[1:3]
    narrow = kernel.astype(x.dtype)
    kernel = narrow.astype(wide)
    mu = parts.sum(axis=2, dtype=wide) / pixels
    # XLA computes this sum in the kernel that writes x. Without the barrier, it would also store x before its
    # activation, and compute the activation again in each product.
    x = lax.optimization_barrier(x)
    parts = _in_parts(x, groups, shards)
    gram = _sum_of_products(parts, parts, max(GRAM_CHUNK, 8 * inputs), wide) / pixels
    covariance = gram - mu[..., :, None] * mu[..., None, :]
    spread = jnp.matmul(covariance, kernel, precision=lax.Precision.HIGHEST)
    var = (kernel * spread).sum(axis=-2)  # [G, Q, C], of each part
    group_mu = mu.mean(axis=1)
    mean = _down(group_mu, kernel)
    distance = None
    if per_part == 1:
        var = var[:, 0]
    else:
        own_mean = _down(mu, kernel)
        distance = own_mean - mean[:, None]
        var = (var + jnp.square(own_mean - about)).mean(axis=1) - jnp.square(mean - about)
    powers = (gram * jnp.eye(inputs, dtype=wide)).sum(
        axis=-1
    )  # of the pixels; a gather takes one kernel more
    least = FLOOR * (_down(powers.mean(axis=1), jnp.square(kernel)) + jnp.square(mean))
    is_exact = var >= least
    var = jnp.maximum(var, least)
    deviation = lax.rsqrt(var + epsilon)
    factor = scale * deviation
    folded = (kernel * factor[:, None, :]).astype(x.dtype)
    shift = bias - _down(group_mu, folded.astype(wide))  # [G, C]
    z = _per_group(x, folded) + _along_images(shift.astype(x.dtype), x)
    pooled = None
    if pools:
        means = x.mean(axis=(1, 2), dtype=wide).reshape(groups, -1, inputs)
        wide_folded = folded.astype(wide)
        product = jnp.matmul(means, wide_folded, precision=lax.Precision.HIGHEST)
        pooled = (product + shift[:, None]).reshape(-1, outputs)
    saved = _Saved(x, narrow, factor, folded, mu, spread, distance, deviation, is_exact)
    return (z, mean, var, pooled), saved


def _backward(
    epsilon: float, groups: int, shards: int, pools: bool, saved: _Saved, cotangents: tuple
) -> tuple:
    del epsilon
    # The cotangents of mean and variance are zero in training. XLA would compute their products.
    g, dmean, dvar, dpooled = (None if isinstance(c, SymbolicZero) else c for c in cotangents)
    x, factor, deviation, wide = saved.x, saved.factor, saved.deviation, saved.factor.dtype
    g = jnp.zeros((*x.shape[:3], saved.folded.shape[-1]), x.dtype) if g is None else g
    if dpooled is not None:
        spread = dpooled[:, None, None, :] / math.prod(x.shape[1:3])
        g = (g.astype(wide) + spread).astype(g.dtype)
    parts, slopes = _in_parts(x, groups, shards), _in_parts(g, groups, shards)
    per_part, pixels = parts.shape[1:3]
    count = per_part * pixels
    kernel, folded = saved.kernel.astype(wide), saved.folded.astype(wide)

    total = slopes.sum(axis=2, dtype=wide)  # [G, Q, C]
    cross = _sum_of_products(parts, slopes, CROSS_CHUNK, wide)  # [G, Q, K, C]
    cross -= saved.mu[..., :, None] * total[..., None, :]
    product = (kernel * cross).sum(axis=-2)
    if saved.distance is not None:
        product += saved.distance * total
    dscale, dbias = product.sum(axis=1) * deviation, total.sum(axis=1)  # [G, C]
    slope = factor * dscale * deviation - (0 if dvar is None else 2 * dvar)
    slope = jnp.where(saved.is_exact, slope, 0) / count

    # [G, K, K], of x's dtype
    back = (kernel * -slope[:, None, :]).astype(x.dtype)
    inner = jnp.matmul(back, saved.kernel.T, precision=lax.Precision.HIGHEST)
    constant = (
        -_down(saved.mu, inner.astype(wide)[:, None]) - _along(folded, dbias)[:, None] / count
    )
    dkernel = factor[:, None, None] * cross - pixels * slope[:, None, None] * saved.spread
    if dmean is not None:
        constant += _along(kernel, dmean)[:, None] / count
        dkernel += saved.mu[..., :, None] * dmean[:, None, None] / per_part
    if saved.distance is not None:
        far = slope[:, None] * saved.distance  # [G, Q, C]
        own = factor[:, None] * (total - dbias[:, None] / per_part) - pixels * far
        constant -= _along(kernel, far)
        dkernel += saved.mu[..., :, None] * own[..., None, :]
    (through,) = jax.vjp(lambda x: _per_group(x, saved.folded), x)[1](g)
    dx = _per_group(x, inner) + _along_images(constant.astype(x.dtype), x) + through

    if per_part > 1:  # cross the devices in the dtype in which the gradients of other kernels do
        dkernel = dkernel.astype(x.dtype)
        dkernel = lax.reduce(dkernel, jnp.zeros((), x.dtype), lax.add, (0, 1)).astype(wide)
    else:
        dkernel = dkernel.sum(axis=(0, 1))
    return dx, dkernel, dscale.sum(axis=0), dbias.sum(axis=0), jnp.zeros_like(dscale[0])


collapsed_batch_norm.defvjp(_forward, _backward, symbolic_zeros=True)


def _in_parts(x: Array, groups: int, shards: int) -> Array:
    """Reshape [N, H, W, C] to [groups, Q, M, C]: Q parts of a group, each on one device, of M pixels."""
    per_group = max(1, shards // groups)
    return x.reshape(groups, per_group, -1, x.shape[-1])


def _sum_of_products(a: Array, b: Array, chunk: int, wide: Any) -> Array:
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
        return convolve(POINTWISE, x, kernels[:, None])
    y = jnp.matmul(x.reshape(len(kernels), -1, x.shape[-1]), kernels)
    return y.reshape(*x.shape[:3], -1)


def _along_images(vectors: Array, x: Array) -> Array:
    """Broadcast vectors [G, Q, C] over the pixels [N, H, W] of their parts, to [N, 1, 1, C] or [1, 1, 1, C]."""
    flat = vectors.reshape(-1, 1, 1, 1, vectors.shape[-1])
    if len(flat) == 1:
        return flat[0]
    repeated = jnp.broadcast_to(flat, (len(flat), len(x) // len(flat), 1, 1, flat.shape[-1]))
    return repeated.reshape(len(x), 1, 1, -1)
