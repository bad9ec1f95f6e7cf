"""Convolution and linear layers, and the one function that computes every convolution.

Padding is explicit everywhere, as in torch. For strided convolutions of even sizes, XLA's ``SAME`` pads other sides
than torch, so weights trained in torch would give different outputs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flax_resnet.errors import ConfigError
from flax_resnet.ops.conv import convolve
from flax_resnet.ops.conv_algorithms import Geometry

Array = jax.Array
Dtype = Any

# He et al. 2015, "Delving deep into rectifiers", section 2.2, with fan-out as in torchvision.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def at_least_float32(dtype: Dtype) -> Dtype:
    """Return `dtype`, or float32 if `dtype` is narrower: the dtype of parameters and statistics."""
    return jnp.promote_types(dtype, jnp.float32)


def convolution(
    x: Array,
    kernel: Array,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Array:
    """Convolve with symmetric zero padding, with the fastest algorithm for the platform.

    Args:
      x: [N, H, W, I].
      kernel: [KH, KW, I / groups, O], of the dtype of `x`.
      stride: step in both directions.
      padding: zeros added on every side.
      dilation: distance between two taps of the kernel.
      groups: number of groups of channels that are convolved separately.

    Returns:
      [N, (H + 2 padding - dilation (KH - 1) - 1) // stride + 1, ..., O].

    Raises:
      ConfigError: the padded map is smaller than the kernel, so the images are too small for the network.
    """
    spans = [dilation * (size - 1) + 1 for size in kernel.shape[:2]]
    if any(
        not size or size + 2 * padding < span
        for size, span in zip(x.shape[1:3], spans, strict=True)
    ):
        raise ConfigError(
            f"too small for this network: a {kernel.shape[0]}x{kernel.shape[1]} convolution meets a map of "
            f"{x.shape[1]}x{x.shape[2]}",
            key="images",
        )

    return convolve(Geometry(stride, padding, dilation, groups), x, kernel)


class Product(NamedTuple):
    """The operands of a 1x1 convolution that `BatchNorm` computes together with its normalisation.

    Attributes:
      x: [N, H, W, I], the pixels that the convolution reads, in the compute dtype.
      kernel: [1, 1, I, O], at least float32.
    """

    x: Array
    kernel: Array


def standardized(kernel: Array, epsilon: float) -> Array:
    """Standardize every output channel of a kernel [KH, KW, I, O] to zero mean and unit (biased) variance.

    Source: Qiao et al. 2019, "Micro-batch training with batch-channel normalization and weight
    standardization", section 3; epsilon is added to the variance.
    """
    centred = kernel - kernel.mean(axis=(0, 1, 2), keepdims=True)
    variance = jnp.square(centred).mean(axis=(0, 1, 2), keepdims=True)
    return centred * lax.rsqrt(variance + epsilon)


class Conv(nn.Module):
    """Square convolution with parameters `kernel` [K, K, I / groups, O] and, if `bias`, `bias` [O].

    Attributes:
      features: output channels O.
      size: kernel height and width K.
      stride: step in both directions.
      dilation: distance between two taps.
      groups: groups of channels that are convolved separately, a divisor of I and O.
      padding: zeros on every side; None for dilation (K - 1) / 2, which keeps the size at stride 1.
      bias: whether to add a bias.
      standardize: epsilon of weight standardisation, or None for no standardisation.
      dtype: compute dtype; parameters are at least float32.
      kernel_init: initialiser of the kernel.
    """

    features: int
    size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    padding: int | None = None
    bias: bool = False
    standardize: float | None = None
    dtype: Dtype = jnp.float32
    kernel_init: Callable = he_normal_fan_out

    @nn.compact
    def __call__(self, x: Array, *, lazy: bool = False) -> Any:
        """Map [N, H, W, I] to [N, H', W', features]; with `lazy`, return the `Product` of a 1x1 without bias."""
        dtype = at_least_float32(self.dtype)
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, dtype)
        if self.standardize is not None:
            kernel = standardized(kernel, self.standardize)
        padding = self.dilation * (self.size - 1) // 2 if self.padding is None else self.padding
        if lazy:
            return Product(x.astype(self.dtype)[:, :: self.stride, :: self.stride], kernel)
        y = convolution(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), dtype)
            y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y


def torch_uniform_init(fan_in: int) -> Callable:
    """Return torch's default initialiser for linear layers and convolutions: uniform in ±1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Linear(nn.Module):
    """Linear layer with parameters `kernel` [I, O] and, if `bias`, `bias` [O], computed in `dtype`.

    Attributes:
      features: output features O.
      dtype: compute dtype; parameters are at least float32. Classifiers use at least float32.
      kernel_init: initialiser of the kernel; the bias then starts at zero. None for torch's default for both.
      bias: whether to add a bias.
    """

    features: int
    dtype: Dtype = jnp.float32
    kernel_init: Callable | None = None
    bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [N, I] to [N, features]."""
        dtype = at_least_float32(self.dtype)
        torchs = torch_uniform_init(x.shape[-1])
        kernel_init = self.kernel_init or torchs
        bias_init = nn.initializers.zeros if self.kernel_init else torchs
        kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features), dtype)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if not self.bias:
            return y
        bias = self.param("bias", bias_init, (self.features,), dtype)
        return y + bias.astype(self.dtype)[None, :]
