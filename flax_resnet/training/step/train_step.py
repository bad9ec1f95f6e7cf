"""The compiled functions: one update, the sums of one evaluation batch, the statistics of one batch."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flax_resnet.config import Config
from flax_resnet.ops import dispatch
from flax_resnet.optim import ema
from flax_resnet.optim.schedules import constant
from flax_resnet.training import sharding
from flax_resnet.training.state import TrainState
from flax_resnet.training.step import loss_scale
from flax_resnet.training.step.gradient import Batch, make_gradient
from flax_resnet.training.step.loops import repeat
from flax_resnet.training.teacher import Teacher

Metrics = dict[str, jax.Array]


def make_train_step(
    config: Config,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    fetch: Callable[[Any, Any], Batch] = lambda data, batch: batch,
    *,
    parts: int = 1,
    teacher: Teacher | None = None,
    drop: optax.Schedule = constant,
    total_steps: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns the jitted updates of one call; it consumes (donates) the state it is given.

    On CPU it is compiled with options (`dispatch.compiler_options`), and so to be called, not traced within a jit.

    Args:
      config: the configuration.
      model: the network.
      optimizer: of the parameters.
      mesh: the devices.
      fetch: makes a step's batch inside the compiled function; `training_batch` of a feed.
      parts: as in `make_gradient`.
      teacher: likewise.
      drop: likewise.
      total_steps: of the run, for `ema.rise`.

    Returns:
      ``updates(state, data, steps, *taught) -> (state, metrics)``: `data`, a feed's, whose "seed" is the run's (an
      argument, so that one program serves every seed), and each element of `steps` (pytree with leading axis
      [steps]) go to `fetch`; `taught` are the teacher's variables, if there is one. The metrics are those of each
      batch before its update, as `make_gradient` says, and with float16 loss_scale, and skipped, 1 where its
      gradient was not finite: float32 [steps].
    """
    gradient = make_gradient(config, model, mesh, parts=parts, teacher=teacher, drop=drop)

    def train_step(
        state: TrainState, seed: jax.Array, batch: Batch, taught: Any = None
    ) -> tuple[TrainState, Metrics]:
        scale = loss_scale.factor(state.loss_scale)
        grads, metrics, batch_stats = gradient(
            state.params, state.batch_stats, seed, state.step, batch, scale, taught
        )
        grads = loss_scale.unscaled(grads, state.loss_scale)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        step = state.step + 1
        variables = {
            "params": optax.apply_updates(state.params, updates),
            "batch_stats": batch_stats,
        }
        mean, variables = ema.advance(state.average, variables, step, config.average, total_steps)
        new_state = TrainState(
            step=step,
            opt_state=opt_state,
            average=mean,
            loss_scale=state.loss_scale,
            **variables,
        )
        if state.loss_scale:
            finite = loss_scale.is_finite(grads)
            metrics |= {"loss_scale": scale, "skipped": 1 - jnp.float32(finite)}
            new_state = loss_scale.advance(state, new_state, finite)
        return new_state, metrics

    def updates(
        state: TrainState, data: Any, steps: Any, *taught: Any
    ) -> tuple[TrainState, Metrics]:
        def one(state: TrainState, step: Any) -> tuple[TrainState, Metrics]:
            return train_step(state, data["seed"], fetch(data, step), *taught)

        return repeat(one, state, steps, mesh)

    whole = sharding.replicated(mesh)
    return jax.jit(
        updates,
        in_shardings=(
            whole,
            whole,
            None,
            *([whole] if teacher else []),
        ),  # steps are where the feed has put them
        out_shardings=(whole, whole),
        donate_argnums=0,
        compiler_options=dispatch.compiler_options(),
    )


def compiled_ahead(
    train_step: Callable, state: TrainState, data: Any, calls: list[Any], *taught: Any
) -> Callable:
    """Compiles updates for all calls to come, so that no other size or number of steps makes the run wait.

    Args:
      train_step: as `make_train_step` makes it.
      state: shapes of the state, with shardings.
      data: a feed's.
      calls: their shapes, of each kind one: a feed's `calls`.
      *taught: as in `make_train_step`.

    Returns:
      What does as `train_step` does.
    """

    def kind(steps: Any) -> tuple:
        return tuple(leaf.shape for leaf in jax.tree.leaves(steps))

    programs = {
        kind(steps): train_step.lower(state, data, steps, *taught).compile() for steps in calls
    }

    def updates(state: TrainState, data: Any, steps: Any, *taught: Any) -> tuple:
        return programs[kind(steps)](state, data, steps, *taught)

    return updates
