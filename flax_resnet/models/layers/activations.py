"""The activations by name, and a GELU that stores only one array for its gradient."""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flax_resnet.models.layers.convolution import at_least_float32
from flax_resnet.ops.relu import relu, relu_of_sum
from flax_resnet.settings import Registry, Row

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationRow(Row):
    """One activation.

    Attributes:
      apply: the function, from an array to an array of the same shape and dtype.
      of_sum: the same function for the sum at the end of a block, if another form of it is faster there.
    """

    apply: Callable[[Array], Array]
    of_sum: Callable[[Array], Array] | None = None


ACTIVATIONS: Registry[ActivationRow] = Registry(__name__)


def _widened(x: Array) -> Array:
    return x.astype(at_least_float32(x.dtype))


def _normal_cdf(x: Array) -> Array:
    """Return P(X <= x) for a standard normal X."""
    return 0.5 + 0.5 * lax.erf(x * math.sqrt(0.5))


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """Return ``x P(X <= x)`` for a standard normal X, with the shape and dtype of x, computed in at least float32.

    For linen's GELU, which uses the complementary error function, JAX stores six arrays for the gradient. This
    function stores only the slope. Value and gradient of this function, followed by a 1x1 convolution, take 2/3 of
    the time that they take with linen's GELU (x of [500, 31, 31, 24], two cores).

    Source: Hendrycks and Gimpel 2016, "Gaussian error linear units", section 2.
    """
    wide = _widened(x)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _gelu_tangent(tangent: Array, y: Array, x: Array) -> Array:
    del y
    wide = _widened(x)
    density = jnp.exp(-0.5 * jnp.square(wide)) / math.sqrt(2 * math.pi)
    return tangent * (_normal_cdf(wide) + wide * density).astype(x.dtype)


gelu.defjvps(_gelu_tangent)


ROWS = (
    ActivationRow(name="relu", help="max(x, 0)", apply=relu, of_sum=relu_of_sum),
    ActivationRow(name="silu", help="x sigmoid(x), also called swish", apply=nn.silu),
    ActivationRow(name="gelu", help="x P(X <= x) for a standard normal X", apply=gelu),
    ActivationRow(name="leaky_relu", help="max(x, 0.01 x)", apply=nn.leaky_relu),
    ActivationRow(name="elu", help="x above 0, exp(x) - 1 below", apply=nn.elu),
)
