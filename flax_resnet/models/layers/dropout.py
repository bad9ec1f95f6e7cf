"""What drops values at random in training, at a rate that is fixed or that the compiled step computes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_resnet.models.layers.convolution import Array


def drop(key: Array, x: Array, rate: float | Array, shape: tuple[int, ...]) -> Array:
    """Sets values to zero at random, and scales those that are kept by 1 / (1 - rate): the mean stays.

    Args:
      key: of the draw.
      x: [N, ...], of any float dtype.
      rate: probability of zero, from 0 to below 1: a float, or a float32 scalar, traced or not. At 0
        each value is kept, and divided by 1: the result is x, bit for bit.
      shape: of the draw; it broadcasts to x's, values along an axis of 1 sharing their fate.

    Returns:
      As x.

    Source: Srivastava et al. 2014, "Dropout", section 4, in its inverted form; of examples, Huang et al. 2016,
    "Deep networks with stochastic depth", section 3.
    """
    keep = 1 - rate
    kept = jax.random.bernoulli(key, keep, shape)
    return jnp.where(kept, x / keep, 0).astype(x.dtype)


def scaled(rate: float, factor: float | Array) -> Array | None:
    """Returns rate x factor, float32 scalar; None where it is the rate itself, or nothing drops anyway.

    A factor of 1 that is no array leaves rates what they are, numbers of the program that is compiled.

    Args:
      rate: from 0 to below 1.
      factor: from 0 to 1: a float, or a float32 scalar, traced or not.
    """
    if not rate or (isinstance(factor, int | float) and factor == 1):
        return None
    return jnp.float32(rate) * factor


class Dropout(nn.Module):
    """Dropout of single values, from the stream `dropout`; nn.Dropout, but for a rate that may be traced.

    Its automatic names are those of nn.Dropout, and so are its draws.

    Attributes:
      rate: from 0 to below 1.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool, rate: Array | None = None) -> Array:
        """Drops in training; at evaluation, or at a rate of 0, x is returned as it is.

        Args:
          x: [N, ...].
          train: whether to drop.
          rate: in place of the module's, a float32 scalar; None for the module's own.
        """
        if not train or not self.rate:
            return x
        return drop(self.make_rng("dropout"), x, self.rate if rate is None else rate, x.shape)
