"""The parts every network is made of: convolution, batch normalisation, pooling, classifier.

Padding is explicit everywhere, as in torch: on even sizes XLA's ``SAME`` pads a strided convolution
on other sides than torch does, and weights trained there then give other outputs here.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Dtype = Any

# He et al. 2015, "Delving deep into rectifiers", section 2.2, with fan-out as torchvision uses.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def at_least_float32(dtype: Dtype) -> Dtype:
    """Returns `dtype`, or float32 where it is narrower: the type of parameters and statistics."""
    return jnp.promote_types(dtype, jnp.float32)


def convolution(x: Array, kernel: Array, *, stride: int = 1, padding: int = 0) -> Array:
    """Convolves with symmetric zero padding; the one place where a platform is lowered differently.

    Args:
      x: [N, H, W, I].
      kernel: [KH, KW, I, O], of the dtype of `x`.
      stride: step in both directions.
      padding: zeros added on every side.

    Returns:
      [N, (H + 2 padding - KH) // stride + 1, (W + 2 padding - KW) // stride + 1, O].
    """

    def plain(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=((padding, padding), (padding, padding)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def as_dot(x: Array, kernel: Array) -> Array:
        return _convolution_as_dot(x, kernel, stride, padding)

    # XLA:CPU runs a 3x3 on a 2x2 map of 256 or more channels at 1 GFLOP/s (1.8 s for 512 channels
    # at batch 64, against 8 ms as a dot); on a 1x1 map eight of nine taps only ever see padding.
    tiny_map = x.shape[1] * x.shape[2] <= 4 and kernel.shape[0] * kernel.shape[1] > 1
    if tiny_map:
        return lax.platform_dependent(x, kernel, cpu=as_dot, default=plain)
    return plain(x, kernel)


def _convolution_as_dot(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Gathers the taps of each output position and multiplies them with the kernel in one dot."""
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


class Conv(nn.Module):
    """Square convolution without bias, He-normal (fan-out) weights; parameter `kernel` [K, K, I, O].

    Attributes:
      features: output channels O.
      size: kernel height and width K.
      stride: step in both directions; padding is (K - 1) // 2, as torchvision sets it.
      dtype: compute dtype; the parameter is at least float32.
    """

    features: int
    size: int
    stride: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, I] to [N, H', W', features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", he_normal_fan_out, shape, at_least_float32(self.dtype))
        return convolution(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=(self.size - 1) // 2,
        )


class BatchNorm(nn.Module):
    """Batch normalisation with torch's running statistics, in at least float32.

    ``y = (x - mean) / sqrt(var + epsilon) * scale + bias``. In training the biased variance of the
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
      dtype: dtype of the result.
      scale_init: initialiser of `scale`.

    Raises:
      ValueError: the batch does not divide into `groups`, or a group has one value per channel.

    Source: Ioffe and Szegedy 2015, algorithm 1; ghost batches: Hoffer et al. 2017, section 4.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    groups: int = 1
    frozen: bool = False
    dtype: Dtype = jnp.float32
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalises [N, H, W, C] over N, H, W (of each group)."""
        stats_dtype = at_least_float32(self.dtype)
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), stats_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), stats_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), stats_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), stats_dtype)

        batch, height, width, _ = x.shape
        groups = self.groups if train and not self.frozen else 1
        if batch % groups:
            raise ValueError(f"BatchNorm: a batch of {batch} does not divide into {groups} groups")
        grouped = x.reshape(groups, batch // groups, height, width, channels).astype(stats_dtype)
        if train and not self.frozen:
            mean = grouped.mean(axis=(1, 2, 3), keepdims=True)
            # Two passes: E[x²] - E[x]² loses all digits where |mean| is far above the deviation.
            var = jnp.square(grouped - mean).mean(axis=(1, 2, 3), keepdims=True)
            if not self.is_initializing():
                count = grouped.size // (groups * channels)
                if count < 2:
                    raise ValueError("BatchNorm: one value per channel has no variance to train on")
                unbiased = var.mean(axis=(0, 1, 2, 3)) * (count / (count - 1))
                keep = 1 - self.momentum
                running_mean.value = keep * running_mean.value + self.momentum * mean.mean(
                    axis=(0, 1, 2, 3)
                )
                running_var.value = keep * running_var.value + self.momentum * unbiased
        else:
            mean = running_mean.value.reshape(1, 1, 1, 1, channels)
            var = running_var.value.reshape(1, 1, 1, 1, channels)
        factor = lax.rsqrt(var + self.epsilon) * scale.reshape(1, 1, 1, 1, channels)
        y = (grouped - mean) * factor + bias.reshape(1, 1, 1, 1, channels)
        return y.reshape(x.shape).astype(self.dtype)


def max_pool(x: Array, *, size: int, stride: int, padding: int) -> Array:
    """Takes the maximum over size x size windows; the padding never wins."""
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    # The initial value must be a plain constant: only then does JAX know how to differentiate this.
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, sides)


def torch_linear_init(fan_in: int) -> Callable:
    """Returns torch's default for a linear layer: uniform in ±1/sqrt(fan_in), weight and bias."""
    bound = fan_in**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Classifier(nn.Module):
    """Linear layer to logits of at least float32; parameters `kernel` [I, K] and `bias` [K]."""

    num_classes: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, I] to [N, num_classes]."""
        dtype = at_least_float32(self.dtype)
        init = torch_linear_init(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.num_classes), dtype)
        bias = self.param("bias", init, (self.num_classes,), dtype)
        return x.astype(dtype) @ kernel + bias[None, :]
