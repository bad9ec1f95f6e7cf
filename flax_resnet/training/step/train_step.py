"""The training step: augment, forward, loss, gradient, update, moving average."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flax_resnet.augment import training_batch
from flax_resnet.config import Config
from flax_resnet.models.network import Network
from flax_resnet.ops import dispatch
from flax_resnet.optim import ema
from flax_resnet.optim.losses import loss_weight
from flax_resnet.optim.optimizer import parameter_average
from flax_resnet.optim.schedules import constant
from flax_resnet.training import sharding
from flax_resnet.training.state import TrainState
from flax_resnet.training.step import loss_scale, nonfinite
from flax_resnet.training.step.gradient import make_gradient
from flax_resnet.training.step.loops import several_steps
from flax_resnet.training.step.training_loss import LossInputs, Metrics

Batch = dict[str, jax.Array]

# Streams of random numbers: the key of a step is fold_in(fold_in(key(seed), STREAM), step). Augmentation then folds
# in the operation and the row. The initial weights use key(seed).
AUGMENT_STREAM, DROPOUT_STREAM = 1, 2


class TrainStep(Protocol):
    """The compiled updates of one call. The state argument is donated."""

    def __call__(self, state: TrainState, data: Any, call: Any) -> tuple[TrainState, Metrics]:
        """Return the state after the updates, and the metrics of each batch before its update.

        Args:
          state: the state before the updates; it cannot be used afterwards.
          data: a feed's `data`, and the teacher's variables as "teacher" if there is a teacher. Its "seed" is the
            run's seed; as it is an argument, one compiled program serves all seeds.
          call: the input that the feed yields for a call.
        """


class JittedStep(TrainStep, Protocol):
    """A `TrainStep` that compiles when it is first called."""

    def lower(self, state: TrainState, data: Any, call: Any) -> jax.stages.Lowered:
        """Return the step, traced for arguments of these shapes and dtypes, to compile it ahead of time."""


def stream_key(seed: jax.Array | int, stream: int, step: jax.Array | int) -> jax.Array:
    """Return the random key of a stream at a step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)


def make_train_step(
    config: Config,
    model: Network,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    fetch: Callable[[Any, Any], Batch] = lambda data, batch: batch,
    *,
    drop: optax.Schedule = constant,
    total_steps: int = 1,
    class_weights: Sequence[float] = (),
    **gradient_options: Any,
) -> JittedStep:
    """Return the jitted training step, with `train.steps_per_call` updates per call.

    Do not call it inside another `jax.jit`: on CPU it has its own compiler options (`dispatch.compiler_options`).

    Args:
      config: the configuration.
      model: the network.
      optimizer: the optimizer of the parameters.
      mesh: the devices.
      fetch: a feed's `training_batch`, which returns the batch of a step inside the compiled function.
      drop: factor on the rates of dropout and stochastic depth, by step.
      total_steps: number of updates of the run, for `ema.decay_power`.
      class_weights: weights of the classes in the loss; () for equal weights.
      **gradient_options: `microbatches` and `teacher` of `make_gradient`.

    Returns:
      A `JittedStep`. Its metrics are `loss` and `top1`; if `nonfinite.skips`, also `skipped`, which is 1 if the
      update was skipped; with float16 also `loss_scale`. Each is float32 [], or [steps] with several steps a call.
    """
    gradient = make_gradient(config, model, mesh, class_weights=class_weights, **gradient_options)

    average = parameter_average(config.optimizer, model)
    everywhere = sharding.replicated(mesh)

    def train_step(state: TrainState, data: Any, call: Any) -> tuple[TrainState, Metrics]:
        batch = fetch(data, call)
        inputs = loss_inputs(config, model, state, batch, data["seed"], drop, class_weights)
        inputs = inputs._replace(teacher_variables=data.get("teacher"))
        grads, (metrics, batch_stats) = gradient(state.params, inputs)
        grads = loss_scale.unscaled(grads, state.loss_scale)
        if config.train.sharding == "optimizer":  # each device needs only its share of the sum
            grads = jax.lax.with_sharding_constraint(grads, sharding.split_parameters(mesh, grads))
        else:
            grads = jax.tree.map(dispatch.pinned_on_gpu, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        variables = {"params": params, "batch_stats": batch_stats}
        if average:
            averaged = {"params": average(opt_state, params), "batch_stats": batch_stats}
        else:
            averaged, variables = ema.advance(state.ema, variables, step, config.ema, total_steps)
        new_state = dataclasses.replace(
            state, step=step, opt_state=opt_state, ema=averaged, **variables
        )
        if nonfinite.skips(config):
            finite = nonfinite.is_finite(metrics["loss"], grads, new_state)
            metrics |= {"skipped": 1 - jnp.float32(finite)}
            new_state = nonfinite.unless_finite(state, new_state, finite)
        if state.loss_scale:
            metrics |= {"loss_scale": jnp.asarray(inputs.loss_scale)}
            has_loss = nonfinite.is_finite(metrics["loss"])
            new_state = dataclasses.replace(
                new_state,
                loss_scale=jax.tree.map(
                    lambda after, before: jnp.where(has_loss, after, before),
                    loss_scale.adjusted(state.loss_scale, finite),
                    state.loss_scale,
                ),
            )
        return sharding.constrained(new_state, mesh, config.train.sharding), metrics

    if config.train.steps_per_call > 1:
        train_step = several_steps(train_step, mesh)
    return jax.jit(
        train_step,
        # None: the state and the batches keep the shardings that they have.
        in_shardings=(None, everywhere, None),
        out_shardings=(None, everywhere),
        donate_argnums=0,
        compiler_options=dispatch.compiler_options(),
    )


def loss_inputs(
    config: Config,
    model: Network,
    state: TrainState,
    batch: Batch,
    seed: jax.Array | int,
    drop: optax.Schedule = constant,
    class_weights: Sequence[float] = (),
) -> LossInputs:
    """Augment a batch with the random keys of the state's step, and return the inputs of the loss.

    Args:
      config: the configuration.
      model: the network.
      state: the state before the step.
      batch: `image`, uint8 [N, S, S, 3], and `label`, int32 [N].
      seed: the run's seed.
      drop: factor on the rates of dropout and stochastic depth, by step.
      class_weights: as in `make_train_step`.
    """
    key = stream_key(seed, AUGMENT_STREAM, state.step)
    images, targets = training_batch(
        key, batch["image"], batch["label"], model.num_classes, config.augment
    )
    return LossInputs(
        batch_stats=state.batch_stats,
        images=images,
        targets=targets,
        weight=loss_weight(targets, config.loss, class_weights),
        dropout_key=stream_key(seed, DROPOUT_STREAM, state.step),
        drop_factor=drop(state.step),
        loss_scale=loss_scale.factor(state.loss_scale),
    )


def compiled_ahead(
    train_step: JittedStep, state: TrainState, data: Any, calls: list[Any]
) -> TrainStep:
    """Compile the training step for all shapes of calls ahead of time, so the run does not wait for it later.

    Args:
      train_step: the result of `make_train_step`.
      state: the state, as shapes with shardings.
      data: as in `TrainStep`.
      calls: the distinct shapes of the calls, from a feed's `calls`.
    """

    def kind(call: Any) -> tuple:
        return tuple(leaf.shape for leaf in jax.tree.leaves(call))

    programs = {kind(call): train_step.lower(state, data, call).compile() for call in calls}

    def updates(state: TrainState, data: Any, call: Any) -> tuple[TrainState, Metrics]:
        return programs[kind(call)](state, data, call)

    return updates
