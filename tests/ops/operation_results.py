"""The results and gradients of an operation on random arrays, and the difference between two operations."""

import jax
import jax.numpy as jnp
import numpy as np

# The two lowerings on CPU: "cpu" is used with one device. "auto" is used with several; the tests have eight.
SWITCHES = ("cpu", "auto")


def normal(shape, dtype, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def results(function, *arguments):
    """Return a function's result, and its gradients for a fixed cotangent that is exact in bfloat16."""
    y, pull = jax.vjp(function, *arguments)
    return y, *pull(normal(y.shape, jnp.bfloat16, 9).astype(y.dtype))


def farthest(got, wanted):
    """Return the largest relative difference: for each pair (a, b) of arrays, max|a - b| / max|b|."""
    return max(
        float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(got, wanted, strict=True)
    )
