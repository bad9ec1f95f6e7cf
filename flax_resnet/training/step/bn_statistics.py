"""Measurement of batch statistics for the moving average of the weights.

The moving average of the batch statistics is not exact: it mixes statistics of different weights.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flax_resnet.config import Config
from flax_resnet.models.network import Network
from flax_resnet.ops import dispatch
from flax_resnet.optim.schedules import constant
from flax_resnet.training import sharding
from flax_resnet.training.state import TrainState
from flax_resnet.training.step.gradient import make_gradient
from flax_resnet.training.step.train_step import Batch, loss_inputs


def make_statistics_measurement(
    config: Config,
    model: Network,
    mesh: Mesh,
    fetch: Callable[[Any, Any], Batch] = lambda data, batch: batch,
    *,
    microbatches: int = 1,
    drop: optax.Schedule = constant,
) -> Callable[[Any, Any, Iterable[Any], Any], Any]:
    """Return a function that measures the running statistics as the mean of the statistics of training batches.

    Args:
      config: the configuration.
      model: the network, with batch normalisation.
      mesh: the devices.
      fetch: as in `make_train_step`.
      microbatches: as in `make_gradient`.
      drop: as in `make_train_step`.

    Returns:
      ``measure(variables, data, calls, step) -> batch_stats``. `data` and `calls` are those of a feed. The rates of
      dropout and stochastic depth are those at `step`.

    Source: Izmailov et al. 2018, "Averaging weights leads to wider optima", section 3.2.
    """
    # With momentum 1 the running statistics are those of the last batch. The gradient itself is unused; without
    # microbatches XLA does not compute it.
    gradient = make_gradient(
        config, model.clone(norm_momentum=1.0), mesh, microbatches=microbatches
    )

    def statistics(variables: Any, number: jax.Array, now: jax.Array, data: Any, call: Any) -> Any:
        state = TrainState(step=number, opt_state=(), ema={}, **variables)
        inputs = loss_inputs(
            config, model, state, fetch(data, call), data["seed"], lambda _: drop(now)
        )
        _, (_, batch_stats) = gradient(state.params, inputs)
        return batch_stats

    everywhere = sharding.replicated(mesh)
    compiled = jax.jit(
        statistics,
        in_shardings=(everywhere, everywhere, everywhere, everywhere, None),
        out_shardings=everywhere,
        compiler_options=dispatch.compiler_options(),
    )

    def measure(variables: Any, data: Any, calls: Iterable[Any], step: jax.Array | int) -> Any:
        total, number = None, 0
        variables = sharding.gathered(variables, mesh)
        for call in calls:
            several = config.train.steps_per_call > 1
            count = len(jax.tree.leaves(call)[0]) if several else 1
            for index in range(count):
                # XLA aborts a process whose CPU devices meet too late in a sum, as with many calls on their way.
                jax.block_until_ready(total)
                one = jax.tree.map(lambda leaf, n=index: leaf[n], call) if several else call
                measured = compiled(variables, jnp.int32(number), jnp.int32(step), data, one)
                total = measured if total is None else jax.tree.map(jnp.add, total, measured)
                number += 1
        return jax.tree.map(lambda leaf: leaf / number, total)

    return measure
