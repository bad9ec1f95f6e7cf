"""Dropout and stochastic depth, with a rate that is fixed or computed by the compiled step."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_resnet.models.layers.convolution import Array


def drop(key: Array, x: Array, rate: float | Array, shape: tuple[int, ...]) -> Array:
    """Set values to zero at random, and scale the others by 1 / (1 - rate), which keeps the mean.

    Args:
      key: key of the draw.
      x: [N, ...], of any float dtype.
      rate: probability of zero, in [0, 1): a float, or a float32 scalar, traced or not. With rate 0 the result
        equals x, bit for bit.
      shape: shape of the draw, broadcast to x; values along an axis of length 1 are dropped together.

    Returns:
      An array like x.

    Source: Srivastava et al. 2014, "Dropout", section 4, in the inverted form. For whole examples: Huang et al.
    2016, "Deep networks with stochastic depth", section 3.
    """
    keep = 1 - rate
    mask = jax.random.bernoulli(key, keep, shape)
    return jnp.where(mask, x / keep, 0).astype(x.dtype)


def scaled(rate: float, factor: float | Array) -> Array | None:
    """Return rate x factor as a float32 scalar; None if the rate is 0 or the factor is the number 1.

    None tells a layer to use its own rate, which stays a constant of the compiled program.

    Args:
      rate: in [0, 1).
      factor: from 0 to 1: a float, or a float32 scalar, traced or not.
    """
    if not rate or (isinstance(factor, int | float) and factor == 1):
        return None
    return jnp.float32(rate) * factor


class Dropout(nn.Module):
    """Dropout of single values with the stream `dropout`, like nn.Dropout, but the rate may be traced.

    Automatic module names and random draws are the same as with nn.Dropout.

    Attributes:
      rate: in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool, rate: Array | None = None) -> Array:
        """Drop values in training; return x unchanged in evaluation, or if the module's rate is 0.

        Args:
          x: [N, ...].
          train: whether to drop.
          rate: a float32 scalar that overrides the module's rate; None for the module's rate.
        """
        if not train or not self.rate:
            return x
        return drop(self.make_rng("dropout"), x, self.rate if rate is None else rate, x.shape)
