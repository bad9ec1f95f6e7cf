"""Channel attention: each channel of a block's output times a gate in (0, 1) made of all of them."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_resnet.models.layers.convolution import (
    Array,
    Dtype,
    Linear,
    at_least_float32,
    torch_uniform_init,
)


def divisible(value: float, divisor: int = 8) -> int:
    """Rounds to the nearest multiple of `divisor`, at least one of them."""
    return max(divisor, int(value + divisor / 2) // divisor * divisor)


class SqueezeExcitation(nn.Module):
    """``x * sigmoid(fc2(relu(fc1(mean_HW(x)))))``.

    Attributes:
      channels: of the input, by which the hidden layer is sized: ratio x channels, in multiples of 8.
      ratio: width of the hidden layer over the channels.
      dtype: compute dtype.

    Source: Hu et al. 2018, "Squeeze-and-excitation networks", section 3.
    """

    channels: int
    ratio: float = 1 / 16
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Scales [N, H, W, C] by channel."""
        y = x.mean(axis=(1, 2)).astype(self.dtype)
        y = nn.relu(Linear(divisible(self.channels * self.ratio), self.dtype, name="fc1")(y))
        y = Linear(x.shape[-1], self.dtype, name="fc2")(y)
        return x * jax.nn.sigmoid(y)[:, None, None, :]


class EfficientChannelAttention(nn.Module):
    """``x * sigmoid(conv1d(mean_HW(x)))`` along the channels; parameter `conv/kernel` [k].

    Attributes:
      channels: of the input, by which the odd kernel size is chosen: about (log2(channels) + 1) / 2.
      ratio: not used; one signature for all kinds of attention.
      dtype: compute dtype.

    Source: Wang et al. 2020, "ECA-Net", section 3.2.
    """

    channels: int
    ratio: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Scales [N, H, W, C] by channel."""
        steps = int(abs(math.log2(self.channels) + 1) / 2)
        size = max(steps if steps % 2 else steps + 1, 3)
        gate = ChannelConv(size, self.dtype, name="conv")(x.mean(axis=(1, 2)))
        return x * jax.nn.sigmoid(gate)[:, None, None, :]


class ChannelConv(nn.Module):
    """Convolution along the channels, zero-padded to keep their number; parameter `kernel` [size].

    Attributes:
      size: taps of the kernel, odd.
      dtype: compute dtype; the parameter is at least float32.
    """

    size: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, C] to [N, C]."""
        init, dtype = torch_uniform_init(self.size), at_least_float32(self.dtype)
        kernel = self.param("kernel", init, (self.size,), dtype).astype(self.dtype)
        channels, x = x.shape[-1], x.astype(self.dtype)
        padded = jnp.pad(x, ((0, 0), (self.size // 2, self.size // 2)))
        return sum(padded[:, tap : tap + channels] * kernel[tap] for tap in range(self.size))


ATTENTION = {"se": SqueezeExcitation, "eca": EfficientChannelAttention}
