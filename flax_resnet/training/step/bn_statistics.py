"""Batch statistics measured anew, for averaged weights."""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flax_resnet.config import Config
from flax_resnet.ops import dispatch
from flax_resnet.optim.schedules import constant
from flax_resnet.training import sharding
from flax_resnet.training.step.gradient import Batch, make_gradient


def make_recalibration(
    config: Config,
    model: nn.Module,
    mesh: Mesh,
    fetch: Callable[[Any, Any], Batch] = lambda data, batch: batch,
    *,
    parts: int = 1,
    drop: optax.Schedule = constant,
) -> Callable[[Any, Any, Iterable, Any], Any]:
    """Returns what measures the running statistics anew: each their mean over batches of the training set.

    Statistics averaged over weights that moved are not those of the averaged weights.

    Args:
      config: the configuration.
      model: the network, with batch normalisation.
      mesh: the devices.
      fetch: as in `make_train_step`.
      parts: as in `make_gradient`.
      drop: likewise.

    Returns:
      ``recalibrate(variables, data, calls, step) -> batch_stats``: `data`, and each of `calls`, as a feed gives
      them; dropping as at `step`.

    Source: Izmailov et al. 2018, "Averaging weights leads to wider optima", section 3.2.
    """
    # A momentum of 1 makes the running statistics those of the last batch. The gradient itself is not asked for,
    # and in one part not computed.
    measured = model.clone(norm_momentum=1.0)

    def statistics(variables: Any, number: jax.Array, now: jax.Array, data: Any, step: Any) -> Any:
        gradient = make_gradient(config, measured, mesh, parts=parts, drop=lambda _: drop(now))
        batch = fetch(data, step)
        params, batch_stats = variables["params"], variables["batch_stats"]
        return gradient(params, batch_stats, data["seed"], number, batch, 1.0)[-1]

    whole = sharding.replicated(mesh)
    places = (whole, whole, whole, whole, None)
    measure = jax.jit(
        statistics,
        in_shardings=places,
        out_shardings=whole,
        compiler_options=dispatch.compiler_options(),
    )

    def recalibrate(variables: Any, data: Any, calls: Iterable, step: jax.Array | int) -> Any:
        total, number = None, 0
        for steps in calls:
            for place in range(len(jax.tree.leaves(steps)[0])):
                one = jax.tree.map(lambda leaf, n=place: leaf[n], steps)
                found = measure(variables, jnp.int32(number), jnp.int32(step), data, one)
                total = found if total is None else jax.tree.map(jnp.add, total, found)
                number += 1
        return jax.tree.map(lambda leaf: leaf / number, total)

    return recalibrate
