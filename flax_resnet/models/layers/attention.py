"""Channel attention: multiply each channel of a block's output by a gate in (0, 1) computed from all channels."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flax_resnet.models.layers.convolution import (
    Array,
    Dtype,
    Linear,
    at_least_float32,
    torch_uniform_init,
)
from flax_resnet.settings import UNSET, Registry, Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionRow(Row):
    """One kind of channel attention.

    Attributes:
      layer: the module, called with (channels, dtype=, name=), and with the fields that `FIELDS` names for the
        settings of `uses`; None for no attention.
    """

    layer: type[nn.Module] | None


ATTENTION: Registry[AttentionRow] = Registry(__name__)
FIELDS = {"attention_ratio": "ratio"}  # {field of a network: the field of its layers that it sets}


def attention_layer(net: Any) -> Callable[..., nn.Module] | None:
    """Return the attention module of a network, to be called with (channels, name=); None for no attention."""
    row = ATTENTION[net.attention]
    options = {FIELDS[name]: getattr(net, name) for name in row.uses}
    return row.layer and partial(row.layer, dtype=net.dtype, **options)


def divisible(value: float, divisor: int = 8) -> int:
    """Round to the nearest multiple of `divisor`, at least `divisor` itself."""
    return max(divisor, int(value + divisor / 2) // divisor * divisor)


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation: ``x * sigmoid(fc2(relu(fc1(mean_HW(x)))))``.

    Attributes:
      channels: number of channels before pruning. The hidden width is ratio x channels, rounded to a multiple of 8.
      ratio: width of the hidden layer / channels.
      dtype: compute dtype.

    Source: Hu et al. 2018, "Squeeze-and-excitation networks", section 3.
    """

    channels: int
    ratio: float = 1 / 16
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, means: Array | None = None) -> Array:
        """Scale each channel of [N, H, W, C]; `means` are its means over H and W, if they are known."""
        y = (x.mean(axis=(1, 2)) if means is None else means).astype(self.dtype)
        y = nn.relu(Linear(divisible(self.channels * self.ratio), self.dtype, name="fc1")(y))
        y = Linear(x.shape[-1], self.dtype, name="fc2")(y)
        return x * jax.nn.sigmoid(y)[:, None, None, :]


class EfficientChannelAttention(nn.Module):
    """Efficient channel attention: ``x * sigmoid(conv1d(mean_HW(x)))``; parameter `conv/kernel` [k].

    Attributes:
      channels: number of channels before pruning. The kernel size is (log2(channels) + 1) / 2, rounded down to an
        integer, then up to an odd number of at least 3.
      dtype: compute dtype.

    Source: Wang et al. 2020, "ECA-Net", section 3.2.
    """

    channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, means: Array | None = None) -> Array:
        """Scale each channel of [N, H, W, C]; `means` are its means over H and W, if they are known."""
        means = x.mean(axis=(1, 2)) if means is None else means
        steps = int(abs(math.log2(self.channels) + 1) / 2)
        size = max(steps if steps % 2 else steps + 1, 3)
        gate = ChannelConv(size, self.dtype, name="conv")(means)
        return x * jax.nn.sigmoid(gate)[:, None, None, :]


class ChannelConv(nn.Module):
    """1-D convolution along the channels, with zero padding that keeps their number; parameter `kernel` [size].

    Attributes:
      size: number of taps, odd.
      dtype: compute dtype; the parameter is at least float32.
    """

    size: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [N, C] to [N, C]."""
        init, dtype = torch_uniform_init(self.size), at_least_float32(self.dtype)
        kernel = self.param("kernel", init, (self.size,), dtype).astype(self.dtype)
        channels, x = x.shape[-1], x.astype(self.dtype)
        padded = jnp.pad(x, ((0, 0), (self.size // 2, self.size // 2)))
        taps = (lax.slice_in_dim(padded, tap, tap + channels, axis=1) for tap in range(self.size))
        return sum(taken * kernel[tap] for tap, taken in enumerate(taps))


ROWS = (
    AttentionRow(name="none", help="no attention", layer=None),
    AttentionRow(
        name="se",
        help="squeeze-and-excitation",
        uses={"attention_ratio": UNSET},
        layer=SqueezeExcitation,
    ),
    AttentionRow(name="eca", help="efficient channel attention", layer=EfficientChannelAttention),
)
