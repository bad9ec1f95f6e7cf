"""Results and gradients of an operation on random arrays, and their distance."""

import jax
import jax.numpy as jnp
import numpy as np

# Both lowerings of a CPU: of one device, and of several (the tests have eight).
SWITCHES = ("cpu", "auto")


def normal(shape, dtype, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def results(function, *arguments):
    """What a function returns, and its gradients against a fixed direction, exact in bfloat16."""
    y, pull = jax.vjp(function, *arguments)
    return y, *pull(normal(y.shape, jnp.bfloat16, 9).astype(y.dtype))


def farthest(got, wanted):
    """The largest difference of each pair, of its largest value."""
    return max(
        float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(got, wanted, strict=True)
    )
