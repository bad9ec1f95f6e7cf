"""Loops inside the compiled step: over microbatches, and over the steps of one call."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh


def repeat(function: Callable, carry: Any, xs: Any, mesh: Mesh) -> tuple[Any, Any]:
    """Run `jax.lax.scan`, unrolled on CPU.

    On CPU, the gradient of a convolution inside a loop takes 6 to 28 times as long.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return jax.lax.scan(function, carry, xs)
    outputs = []
    for number in range(len(jax.tree.leaves(xs)[0])):
        carry, output = function(carry, jax.tree.map(lambda leaf, n=number: leaf[n], xs))
        outputs.append(output)
    return carry, jax.tree.map(lambda *values: jnp.stack(values), *outputs)


def several_steps(train_step: Callable, mesh: Mesh) -> Callable:
    """Return a training step of several updates. Its `calls` and its metrics have a leading axis [steps]."""

    def train_steps(state: Any, data: Any, calls: Any) -> tuple:
        def one(state: Any, call: Any) -> tuple:
            return train_step(state, data, call)

        return repeat(one, state, calls, mesh)

    return train_steps
