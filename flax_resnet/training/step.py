"""The compiled functions: one update, the sums of one evaluation batch, the statistics of one batch."""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flax_resnet.augment import evaluation_images, evaluation_views
from flax_resnet.config import Config
from flax_resnet.models import lowering
from flax_resnet.training import average, loss_scale, sharding
from flax_resnet.training.distill import Teacher
from flax_resnet.training.gradient import Batch, constant, make_gradient, repeat
from flax_resnet.training.metrics import AVERAGE, batch_sums, record
from flax_resnet.training.state import TrainState

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

    On CPU it is compiled with options (`lowering.compiler_options`), and so to be called, not traced within a jit.

    Args:
      config: the configuration.
      model: the network.
      optimizer: of the parameters.
      mesh: the devices.
      fetch: makes a step's batch inside the compiled function; `training_batch` of a feed.
      parts: as in `make_gradient`.
      teacher: likewise.
      drop: likewise.
      total_steps: of the run, for `average.rise`.

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
        mean, variables = average.advance(
            state.average, variables, step, config.average, total_steps
        )
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
        compiler_options=lowering.compiler_options(),
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


def make_eval_step(
    config: Config,
    model: nn.Module,
    mesh: Mesh,
    fetch: Callable[[Any, Any], Batch] = lambda data, batch: batch,
    *,
    confusion: bool = False,
) -> Callable[[TrainState, Any, Any], Metrics]:
    """Returns the jitted evaluation of a batch: its `metrics.batch_sums`, by "" and by "average_".

    The latter are those of the averaged weights, in the same pass, where the state holds such. Logits are the mean
    over an image's `evaluation_views`. Args are those of `make_train_step`, and of `batch_sums`; it is called with
    the state, a feed's `data`, and what the feed yields.
    """

    def eval_step(state: TrainState, data: Any, places: Any) -> Metrics:
        batch = fetch(data, places)
        images = evaluation_images(batch["image"], config.augment)
        views = evaluation_views(images, config.augment)
        raw = {"params": state.params, "batch_stats": state.batch_stats}
        sums = {}
        for prefix, variables in (("", raw), (AVERAGE, state.average)):
            if variables:
                mean = sum(
                    share * model.apply(variables, view, train=False) for share, view in views
                )
                sums[prefix] = batch_sums(mean, batch["label"], batch["mask"], confusion=confusion)
        return sums

    whole = sharding.replicated(mesh)
    return jax.jit(
        eval_step,
        in_shardings=(whole, whole, None),
        out_shardings=whole,
        compiler_options=lowering.compiler_options(),
    )


def total(eval_step: Callable, state: TrainState, data: Any, batches: Iterable) -> Metrics:
    """Runs an evaluation pass and returns the sums over all of it, on the host."""
    sums = None
    for batch in batches:
        found = eval_step(state, data, batch)
        sums = found if sums is None else jax.tree.map(jnp.add, sums, found)
    return jax.device_get(sums)


def evaluate(
    eval_step: Callable, state: TrainState, data: Any, batches: Iterable
) -> dict[str, float]:
    """Runs an evaluation pass and returns its `metrics.record`."""
    return record(total(eval_step, state, data, batches))


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
        compiler_options=lowering.compiler_options(),
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
