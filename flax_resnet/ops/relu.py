"""The rectifier, with gradients that move few bytes on a GPU."""

import jax
import jax.numpy as jnp
from jax import lax

from flax_resnet.ops import dispatch

Array = jax.Array


def relu(x: Array) -> Array:
    """Return ``max(x, 0)``, with the fastest gradient for the platform.

    On GPU, the gradient multiplies by the sign of x, 0 or 1. For a comparison, XLA stores its result as one byte
    per value and reads it again in the sums of batch normalisation's gradient. With the sign, it computes it there:
    103 MB instead of 206 for a map of [256, 28, 28, 128] in bfloat16.
    """
    return _by_sign(x) if dispatch.gpu_form("relu_slope", x) == "sign" else jax.nn.relu(x)


@jax.custom_jvp
def _by_sign(x: Array) -> Array:
    return jax.nn.relu(x)


_by_sign.defjvps(lambda tangent, _, x: tangent * jnp.maximum(jnp.sign(x), 0))


def relu_of_sum(x: Array) -> Array:
    """Return ``max(x, 0)`` for the sum of branch and shortcut, with the fastest form for the platform.

    On GPU, the gradient's mask is computed from the output, which is stored for the next block anyway. XLA would
    turn ``max(x, 0) > 0`` into ``x > 0``, store the sum as well, and not compute sum and rectifier in the kernel of
    the convolution before them.
    """
    return _masked_by_output(x) if dispatch.gpu_form("relu_mask", x) == "output" else jax.nn.relu(x)


@jax.custom_vjp
def _masked_by_output(x: Array) -> Array:
    return jax.nn.relu(x)


def _forward(x: Array) -> tuple[Array, Array]:
    y = lax.optimization_barrier(jax.nn.relu(x))
    return y, y


def _backward(y: Array, dy: Array) -> tuple[Array]:
    return (jnp.where(y > 0, dy, 0),)


_masked_by_output.defvjp(_forward, _backward)
