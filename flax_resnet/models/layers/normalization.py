"""Normalisation layers, each with the activation that follows it.

All layers take [N, H, W, C] and `train`. `act` is the activation of the result, or None. Statistics are at least
float32 for every compute dtype.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flax_resnet.errors import ConfigError
from flax_resnet.models.layers.convolution import Array, Dtype, Product, at_least_float32
from flax_resnet.ops import dispatch
from flax_resnet.ops.batch_norm import along_channels, batch_normalize, normalize
from flax_resnet.ops.collapsed import Scope, collapsed_batch_norm
from flax_resnet.settings import UNSET, Registry, Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormRow(Row):
    """One normalisation.

    Attributes:
      layer: the module, called with (act=, dtype=, scale_init=, name=), and with the fields that `FIELDS` names for
        the settings of `uses`.
      measures_batches: whether training normalises by the statistics of the batch, and keeps their running mean.
      has_activation: whether the layer has an activation of its own. `act` then only turns it on or off.
    """

    layer: Callable[..., nn.Module]
    measures_batches: bool = False
    has_activation: bool = False


NORMS: Registry[NormRow] = Registry(__name__)
# {field of a network: the field of its layers that it sets}. `norm_scope` is no field: it sets `norm_groups`.
FIELDS = {"norm_momentum": "momentum", "norm_epsilon": "epsilon", "norm_groups": "groups"}


def norm_layer(net: Any, act: Callable) -> Callable[..., nn.Module]:
    """Return the normalisation module of a network, to be called with (name=).

    Args:
      net: a network with the fields `norm`, `dtype` and those that the row uses.
      act: the activation that follows, unless the module is called with another one.
    """
    row = NORMS[net.norm]
    options = {own: getattr(net, name) for name, own in FIELDS.items() if name in row.uses}
    return partial(row.layer, act=act, dtype=net.dtype, **options)


GROUPS = 32  # Wu and He 2018, section 4; fewer groups if 32 does not divide the channels


class BatchNorm(nn.Module):
    """Batch normalisation with torch's running statistics, in at least float32.

    ``y = act((x - mean) / sqrt(var + epsilon) * scale + bias)``. In training, the batch is normalised by its biased
    variance, and the running variance is updated with the unbiased variance:
    ``running = (1 - momentum) running + momentum batch``.

    Under jit, the statistics are computed over the global batch on all devices. `groups` splits the batch into runs
    of consecutive examples, each normalised by its own statistics ("ghost" batches). With one group per device
    ("local" statistics), the layer needs no communication. The running statistics are updated with the mean over
    the groups.

    Attributes:
      momentum: weight of the newest batch, in torch's sense (0.1 is 0.9 in flax).
      epsilon: added to the variance.
      groups: number of groups, a divisor of the batch.
      frozen: whether to use the running statistics in training too, without updating them.
      act: activation of the result, or None.
      dtype: dtype of the result.
      scale_init: initialiser of `scale`.

    Raises:
      ConfigError: `groups` does not divide the batch, or a group has only one value per channel.

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
    def __call__(self, x: Any, *, train: bool, pools: bool = False) -> Any:
        """Normalise [N, H, W, C] over N, H, W (of each group).

        Args:
          x: the map; or, in training, the `Product` of the convolution that would compute it.
          train: whether to use the statistics of the batch.
          pools: whether to return a pair: the result, and the mean of each of its images [N, C]. For a map, the
            second element is None.
        """
        if self.has_variable("params", "bias") and not self.has_variable("params", "scale"):
            return self._folded(x, train)
        channels = x.kernel.shape[-1] if isinstance(x, Product) else x.shape[-1]
        stats_dtype = at_least_float32(self.dtype)
        scale = self.param("scale", self.scale_init, (channels,), stats_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), stats_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), stats_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), stats_dtype)

        if self.frozen or not train:
            wide = x.astype(stats_dtype)
            mean, var = (along_channels(leaf.value, wide) for leaf in (running_mean, running_var))
            y = normalize(wide, mean, var, scale, bias, self.epsilon, self.act, self.dtype)
            return (y, None) if pools else y
        y, mean, var, means = self._by_batch(x, scale, bias, running_mean.value, pools)
        if not self.is_initializing():
            count = y.size // (self.groups * channels)
            if count < 2:
                raise ConfigError(
                    "BatchNorm receives one value per channel, which has no variance",
                    key="train.batch_size",
                    cure="use a larger train.batch_size, larger images or fewer model.norm_groups",
                )
            mean, var = (leaf.reshape(-1, channels).mean(axis=0) for leaf in (mean, var))
            keep = 1 - self.momentum
            unbiased = var * (count / (count - 1))
            running_mean.value = keep * running_mean.value + self.momentum * mean
            running_var.value = keep * running_var.value + self.momentum * unbiased
        return (y, means) if pools else y

    def _by_batch(
        self, x: Array | Product, scale: Array, bias: Array, about: Array, pools: bool
    ) -> tuple[Array, Array, Array, Array | None]:
        """Return the normalised map, mean and variance [groups, ..., C], and the means of its images or None."""
        batch, height, width, _ = (x.x if isinstance(x, Product) else x).shape
        if batch % self.groups:
            raise ConfigError(
                key="model.norm_groups",
                value=self.groups,
                allowed=f"a divisor of the batch of {batch} images that BatchNorm receives",
            )
        if isinstance(x, Product):
            pools = pools and not self.act
            scope = Scope(self.epsilon, self.groups, dispatch.batch_shards() or 1, pools)
            kernel = x.kernel[0, 0]
            y, mean, var, means = collapsed_batch_norm(x.x, kernel, scale, bias, about, scope)
            return self.act(y) if self.act else y, mean, var, means
        shape = (self.groups, batch // self.groups, height, width, len(scale))
        # Without groups, keep four axes: XLA on GPU fuses less around an axis of length 1.
        grouped = x.reshape(shape if self.groups > 1 else shape[1:])
        y, mean, var = batch_normalize(
            grouped, scale, bias, about, self.epsilon, self.act, self.dtype
        )
        return y.reshape(x.shape), mean, var, None

    def _folded(self, x: Any, train: bool) -> Array:
        """Add the bias, the only parameter that `folding.fold_batch_norm` keeps."""
        if train:
            raise ConfigError(
                "BatchNorm is folded into the convolution before it and cannot be trained",
                key="train",
                value=True,
                cure="train with the variables from before fold_batch_norm",
            )
        bias: Array = self.get_variable("params", "bias")
        y = x + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return self.act(y) if self.act else y


class _ExampleNorm(nn.Module):
    """Base class of layers that normalise each example by itself, in training and evaluation.

    The attributes are those of `BatchNorm`.
    """

    epsilon: float = 1e-5
    act: Callable | None = None
    dtype: Dtype = jnp.float32
    scale_init: Callable = nn.initializers.ones

    def _vectors(self, x: Array, **initialisers: Callable) -> list[Array]:
        """Return a parameter [1, 1, 1, C] per name, with one number per channel of x."""
        shape, dtype = x.shape[-1:], at_least_float32(self.dtype)
        return [
            self.param(name, init, shape, dtype).reshape(1, 1, 1, -1)
            for name, init in initialisers.items()
        ]


class GroupNorm(_ExampleNorm):
    """Group normalisation over H, W and the channels of each of 32 groups.

    ``y = act((x - mean) / sqrt(var + epsilon) * scale + bias)``, with statistics of each example. The number of
    groups is the greatest common divisor of 32 and the channels.

    Source: Wu and He 2018, "Group normalization", section 3.
    """

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalise [N, H, W, C]."""
        del train
        scale, bias = self._vectors(x, scale=self.scale_init, bias=nn.initializers.zeros)
        grouped = _grouped(x.astype(at_least_float32(self.dtype)))
        mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
        y = (grouped - mean) * lax.rsqrt(_variance(grouped) + self.epsilon)
        y = y.reshape(x.shape) * scale + bias
        return (self.act(y) if self.act else y).astype(self.dtype)


class EvoNormS0(_ExampleNorm):
    """EvoNorm-S0: normalisation by the standard deviation of 32 groups of channels, combined with an activation.

    ``y = x sigmoid(v x) / sqrt(group_var(x) + epsilon) * scale + bias``. `act` only turns the nonlinear part on or
    off: with None, ``y = x scale + bias``.

    Source: Liu et al. 2020, "Evolving normalization-activation layers", table 2.
    """

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalise [N, H, W, C]."""
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
    """Filter response normalisation with the thresholded linear unit.

    ``y = max(x / sqrt(mean_HW(x²) + epsilon) * scale + bias, tau)``. `act` only turns the threshold on or off.

    Source: Singh and Krishnan 2020, "Filter response normalization layer", section 3.
    """

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalise [N, H, W, C]."""
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
    """Split the channels: [N, H, W, C] to [N, H, W, groups, C / groups]."""
    groups = math.gcd(GROUPS, x.shape[-1])
    return x.reshape(*x.shape[:3], groups, x.shape[-1] // groups)


def _variance(grouped: Array) -> Array:
    """Return the biased variance [N, 1, 1, groups, 1] of [N, H, W, groups, C / groups]."""
    centred = grouped - grouped.mean(axis=(1, 2, 4), keepdims=True)
    return jnp.square(centred).mean(axis=(1, 2, 4), keepdims=True)


ROWS = (
    NormRow(
        name="batch",
        help="batch normalisation",
        uses=dict.fromkeys(
            ("norm_momentum", "norm_epsilon", "norm_scope", "norm_groups", "collapse"), UNSET
        ),
        layer=BatchNorm,
        measures_batches=True,
    ),
    NormRow(
        name="frozen",
        help="batch normalisation with fixed statistics",
        uses={"norm_epsilon": UNSET},
        layer=partial(BatchNorm, frozen=True),
    ),
    NormRow(
        name="group",
        help="group normalisation, with 32 groups of channels",
        uses={"norm_epsilon": UNSET},
        layer=GroupNorm,
    ),
    NormRow(
        name="evonorm_s0",
        help="EvoNorm-S0, with its own activation",
        uses={"norm_epsilon": UNSET},
        layer=EvoNormS0,
        has_activation=True,
    ),
    NormRow(
        name="frn",
        help="filter response normalisation, with its own activation",
        uses={"norm_epsilon": UNSET},
        layer=FilterResponseNorm,
        has_activation=True,
    ),
)
