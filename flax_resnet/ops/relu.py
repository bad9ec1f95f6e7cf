"""ReLU, with gradients that move few bytes on a GPU."""

import jax
import jax.numpy as jnp
from jax import lax

from flax_resnet.ops import dispatch

Array = jax.Array


def relu(x: Array) -> Array:
    """Return ``max(x, 0)``, with the fastest gradient for the platform.

    On GPU, the derivative is ``max(sign(x), 0)``. XLA computes a sign inside the sums of batch normalisation's
    gradient. It does not fuse a comparison into sums, but writes it to memory as one byte per value: 206 MB instead
    of 103 for a map of [256, 28, 28, 128] in bfloat16.
    """
    return _by_sign(x) if dispatch.gpu_form("relu_slope", x) == "sign" else jax.nn.relu(x)


@jax.custom_jvp
def _by_sign(x: Array) -> Array:
    return jax.nn.relu(x)


_by_sign.defjvps(lambda tangent, _, x: tangent * jnp.maximum(jnp.sign(x), 0))


def relu_of_sum(x: Array) -> Array:
    """Return ``max(x, 0)`` for the sum of branch and shortcut, with the fastest form for the platform.

    On GPU, the gradient computes its mask from the output, which is stored for the next block anyway. Without the
    barrier, XLA would simplify ``max(x, 0) > 0`` to ``x > 0`` and store x as well. The kernel of the convolution
    before the sum could then not compute the sum and the ReLU.
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
