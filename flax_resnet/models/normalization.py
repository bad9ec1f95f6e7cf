"""Normalisation layers, each with the activation that follows it.

All take [N, H, W, C] and `train`; `act` is the activation applied to the result, None for none.
Statistics are at least float32, whatever the compute dtype.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flax_resnet.errors import ConfigError
from flax_resnet.models import lowering
from flax_resnet.models.convolution import Array, Dtype, at_least_float32

GROUPS = 32  # Wu and He 2018, section 4; fewer where they do not divide the channels


class BatchNorm(nn.Module):
    """Batch normalisation with torch's running statistics, in at least float32.

    ``y = act((x - mean) / sqrt(var + epsilon) * scale + bias)``. In training the biased variance of the
    batch normalises and the unbiased one enters the running variance:
    ``running = (1 - momentum) running + momentum batch``.

    Under jit the batch is the global one, over all devices. `groups` makes the statistics narrower:
    the batch is split into that many runs of consecutive examples, each normalised by its own
    statistics ("ghost" batches; with one group per device, "local" ones, and no communication).
    The running statistics are then the mean over groups.

    Attributes:
      momentum: weight of the newest batch, in torch's sense (0.1, where flax would say 0.9).
      epsilon: added to the variance.
      groups: number of groups, a divisor of the batch.
      frozen: use the running statistics in training too, and leave them alone.
      act: activation of the result, or None.
      dtype: dtype of the result.
      scale_init: initialiser of `scale`.

    Raises:
      ConfigError: the batch does not divide into `groups`, or a group has one value per channel.

    Source: Ioffe and Szegedy 2015, algorithm 1; ghost batches: Hoffer et al. 2017, section 4.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    groups: int = 1
    frozen: bool = False
    act: Callable | None = None
    dtype: Dtype = jnp.float32
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalises [N, H, W, C] over N, H, W (of each group)."""
        stats_dtype = at_least_float32(self.dtype)
        channels = x.shape[-1]
        if self.has_variable("params", "bias") and not self.has_variable("params", "scale"):
            return self._folded(x, train)
        scale = self.param("scale", self.scale_init, (channels,), stats_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), stats_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), stats_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), stats_dtype)

        batch, height, width, _ = x.shape
        groups = self.groups if train and not self.frozen else 1
        if batch % groups:
            raise ConfigError(f"BatchNorm: a batch of {batch} does not divide into {groups} groups")
        shape = (groups, batch // groups, height, width, channels)
        # Without groups as it is: around an axis of one, XLA for GPUs fuses less.
        grouped = x.reshape(shape if groups > 1 else shape[1:])
        if train and not self.frozen:
            static = self.epsilon, self.act, self.dtype
            by_hand = lowering.adapts(x, "cpu", "gpu")
            normalized = _normalized_by_hand if by_hand else _normalized
            y, mean, var = normalized(grouped, scale, bias, running_mean.value, *static)
            if not self.is_initializing():
                count = x.size // (groups * channels)
                if count < 2:
                    raise ConfigError(
                        "BatchNorm: one value per channel has no variance to train on: a larger "
                        "train.batch_size, larger images, or fewer groups"
                    )
                mean, var = (leaf.reshape(-1, channels).mean(axis=0) for leaf in (mean, var))
                keep = 1 - self.momentum
                unbiased = var * (count / (count - 1))
                running_mean.value = keep * running_mean.value + self.momentum * mean
                running_var.value = keep * running_var.value + self.momentum * unbiased
        else:
            wide = grouped.astype(stats_dtype)
            moments = (_along(leaf.value, wide) for leaf in (running_mean, running_var))
            y = _scaled(wide, *moments, scale, bias, self.epsilon, self.act, self.dtype)
        return y.reshape(x.shape)

    def _folded(self, x: Array, train: bool) -> Array:
        """Adds what `folding.fold_batch_norm` leaves of this layer."""
        if train:
            raise ConfigError(
                "BatchNorm: folded into the convolution before it, it cannot be trained"
            )
        bias = self.get_variable("params", "bias").astype(self.dtype)
        y = x + bias.reshape(1, 1, 1, -1)
        return self.act(y) if self.act else y


PIXELS = (-4, -3, -2)  # the axes of a batch that a channel's statistics are taken over


def _scaled(
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
    factor = lax.rsqrt(var + epsilon) * _along(scale, x)
    y = ((x - mean) * factor + _along(bias, x)).astype(dtype)
    return act(y) if act else y


def _along(vector: Array, x: Array) -> Array:
    """Returns [C] with the axes of [..., C]."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def _normalized(
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
    if lowering.adapts(x, "gpu"):
        about = _along(about, x)
        offset = (x - about).mean(axis=PIXELS, keepdims=True)
        var = jnp.square(x - about).mean(axis=PIXELS, keepdims=True) - jnp.square(offset)
        mean, var = about + offset, jnp.maximum(var, 0)
    else:
        mean = x.mean(axis=PIXELS, keepdims=True)
        var = jnp.square(x - mean).mean(axis=PIXELS, keepdims=True)
    return _scaled(x, mean, var, scale, bias, epsilon, act, dtype), mean, var


# --- with a gradient written for few passes over the map: memory traffic is what a step waits for ---


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _normalized_by_hand(*arguments: Any) -> tuple[Array, Array, Array]:
    """Does as `_normalized`; its gradient reads x and dy once for all sums."""
    return _normalized(*arguments)


def _normalized_forward(
    x: Array, scale: Array, bias: Array, about: Array, *static: Any
) -> tuple[tuple, tuple]:
    y, mean, var = _normalized(x, scale, bias, about, *static)
    return (y, mean, var), (x, scale, bias, mean, var)


def _normalized_backward(
    epsilon: float, act: Callable | None, dtype: Dtype, kept: tuple, cotangents: tuple
) -> tuple:
    x, scale, bias, mean, var = kept
    dy, dmean, dvar = cotangents
    count = math.prod(x.shape[axis] for axis in PIXELS)
    deviation = lax.rsqrt(var + epsilon)
    factor = deviation * _along(scale, x)

    def parts(x: Array, dy: Array) -> tuple[Array, Array]:
        """Returns x centred, and the gradient before the activation."""
        centred = x.astype(scale.dtype) - mean
        if act:
            y = (centred * factor + _along(bias, x)).astype(dtype)
            (dy,) = jax.vjp(act, y)[1](dy)
        return centred, dy.astype(scale.dtype)

    centred, before = parts(x, dy)
    on_gpu = lowering.adapts(x, "gpu")
    if not on_gpu:  # once, for three loops: the activation's slope costs more than to write it down
        before = lowering.apart_on_cpu(before)
    total = before.sum(axis=PIXELS, keepdims=True)
    product = (before * centred).sum(axis=PIXELS, keepdims=True)
    if on_gpu:  # once more, where otherwise XLA would write it down and read it twice
        centred, before = parts(*lax.optimization_barrier((x, dy, total, product))[:2])
    slope = (2 * dvar - factor * jnp.square(deviation) * product) / count
    dx = before * factor + centred * slope + (dmean - factor * total) / count
    dscale, dbias = (v.reshape(-1, v.shape[-1]).sum(axis=0) for v in (product * deviation, total))
    return dx.astype(x.dtype), dscale, dbias, jnp.zeros_like(bias)


_normalized_by_hand.defvjp(_normalized_forward, _normalized_backward)


class _ExampleNorm(nn.Module):
    """What the layers have in common that normalise each example by itself, in training and after.

    Attributes are those of `BatchNorm`.
    """

    epsilon: float = 1e-5
    act: Callable | None = None
    dtype: Dtype = jnp.float32
    scale_init: Callable = nn.initializers.ones

    def _vectors(self, x: Array, **initialisers: Callable) -> list[Array]:
        """Returns one parameter per name, of a number per channel of x, as [1, 1, 1, C]."""
        shape, dtype = x.shape[-1:], at_least_float32(self.dtype)
        return [
            self.param(name, init, shape, dtype).reshape(1, 1, 1, -1)
            for name, init in initialisers.items()
        ]


class GroupNorm(_ExampleNorm):
    """Group normalisation over H, W and the channels of each of 32 groups.

    ``y = act((x - mean) / sqrt(var + epsilon) * scale + bias)``, with the statistics of each example
    alone. Where 32 does not divide the channels, their greatest common divisor does.

    Source: Wu and He 2018, "Group normalization", section 3.
    """

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalises [N, H, W, C]."""
        del train
        scale, bias = self._vectors(x, scale=self.scale_init, bias=nn.initializers.zeros)
        grouped = _grouped(x.astype(at_least_float32(self.dtype)))
        mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
        y = (grouped - mean) * lax.rsqrt(_variance(grouped) + self.epsilon)
        y = y.reshape(x.shape) * scale + bias
        return (self.act(y) if self.act else y).astype(self.dtype)


class EvoNormS0(_ExampleNorm):
    """EvoNorm-S0: normalisation and activation in one, by the deviation of 32 groups of channels.

    ``y = x sigmoid(v x) / sqrt(group_var(x) + epsilon) * scale + bias``. `act` only says whether the
    nonlinear part is there at all: with None, ``y = x scale + bias``.

    Source: Liu et al. 2020, "Evolving normalization-activation layers", table 2.
    """

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalises [N, H, W, C]."""
        del train
        scale, bias = self._vectors(x, scale=self.scale_init, bias=nn.initializers.zeros)
        y = x.astype(at_least_float32(self.dtype))
        if self.act:
            (v,) = self._vectors(x, v=nn.initializers.ones)
            deviation = jnp.sqrt(_variance(_grouped(y)) + self.epsilon)
            gated = y * jax.nn.sigmoid(y * v)
            y = (_grouped(gated) / deviation).reshape(x.shape)
        return (y * scale + bias).astype(self.dtype)


class FilterResponseNorm(_ExampleNorm):
    """Filter response normalisation with its thresholded linear unit.

    ``y = max(x / sqrt(mean_HW(x²) + epsilon) * scale + bias, tau)``. `act` only says whether the
    threshold is there.

    Source: Singh and Krishnan 2020, "Filter response normalization layer", section 3.
    """

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalises [N, H, W, C]."""
        del train
        scale, bias = self._vectors(x, scale=self.scale_init, bias=nn.initializers.zeros)
        y = x.astype(at_least_float32(self.dtype))
        power = jnp.square(y).mean(axis=(1, 2), keepdims=True)
        y = y * lax.rsqrt(power + self.epsilon) * scale + bias
        if self.act:
            (tau,) = self._vectors(x, tau=nn.initializers.zeros)
            y = jnp.maximum(y, tau)
        return y.astype(self.dtype)


def _grouped(x: Array) -> Array:
    """Splits the channels: [N, H, W, C] to [N, H, W, groups, C / groups]."""
    groups = math.gcd(GROUPS, x.shape[-1])
    return x.reshape(*x.shape[:3], groups, x.shape[-1] // groups)


def _variance(grouped: Array) -> Array:
    """Returns the biased variance [N, 1, 1, groups, 1] of [N, H, W, groups, C / groups]."""
    centred = grouped - grouped.mean(axis=(1, 2, 4), keepdims=True)
    return jnp.square(centred).mean(axis=(1, 2, 4), keepdims=True)
