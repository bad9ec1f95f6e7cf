"""The compiled functions: one update, the sums of one evaluation batch, the statistics of one batch."""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flax_resnet.augment import evaluation_images, training_batch
from flax_resnet.config import Config
from flax_resnet.training import average, sharding
from flax_resnet.training.loss import batch_loss, cross_entropy
from flax_resnet.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# Streams of random numbers: fold_in(fold_in(key(seed), STREAM), step), then the row. Weights use key(seed).
AUGMENT_STREAM, DROPOUT_STREAM = 1, 2


def stream_key(seed: int, stream: int, step: jax.Array | int) -> jax.Array:
    """Returns the key of one of the streams at a step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)


def is_top1(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns 1 where the largest logit is the label's, else 0: float32 [N]."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def is_top5(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns 1 where the label's logit is among the five largest, else 0: float32 [N]."""
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    return (best == labels[:, None]).any(axis=-1).astype(jnp.float32)


def make_loss(
    config: Config, model: nn.Module, drop: optax.Schedule = lambda step: 1.0
) -> Callable:
    """Returns the loss of a training batch, to be differentiated; `drop` is that of `make_train_step`.

    Returns:
      ``loss(params, batch_stats, step, batch) -> (loss, (logits, targets, batch_stats))``: the mean over the
      batch, augmented as the stream says for that step; logits and soft labels [N, K]; the new statistics.
    """
    seed = config.train.seed

    def loss_fn(params: optax.Params, batch_stats: Any, step: jax.Array, batch: Batch) -> tuple:
        key = stream_key(seed, AUGMENT_STREAM, step)
        images, targets = training_batch(
            key, batch["image"], batch["label"], model.num_classes, config.augment
        )
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": stream_key(seed, DROPOUT_STREAM, step)},
            drop_factor=drop(step),
        )
        loss = batch_loss(logits, targets, config.loss)
        return loss, (logits, targets, updated.get("batch_stats", {}))

    return loss_fn


def make_train_step(
    config: Config,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    fetch: Callable[[Any, Any], Batch] = lambda data, batch: batch,
    drop: optax.Schedule = lambda step: 1.0,
) -> Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]:
    """Returns the jitted updates of one call; it consumes (donates) the state it is given.

    Args:
      config: the configuration.
      model: the network.
      optimizer: of the parameters.
      mesh: the devices.
      fetch: makes a step's batch inside the compiled function; `training_batch` of a feed.
      drop: what the rates of dropping are multiplied by at a step; `schedule.drop_factor`.

    Returns:
      ``updates(state, data, steps) -> (state, metrics)``: `data` and each element of `steps` (pytree with
      leading axis [steps]) go to `fetch`. The metrics are those of each batch before its update: loss
      (mean) and top1 (share; of a mixed label, the larger part counts), float32 [steps].
    """
    gradient = jax.value_and_grad(make_loss(config, model, drop), has_aux=True)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        (loss, (logits, targets, batch_stats)), grads = gradient(
            state.params, state.batch_stats, state.step, batch
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        step = state.step + 1
        variables = {
            "params": optax.apply_updates(state.params, updates),
            "batch_stats": batch_stats,
        }
        mean = average.advance(state.average, variables, step, config.average)
        new_state = TrainState(step=step, opt_state=opt_state, average=mean, **variables)
        top1 = is_top1(logits, jnp.argmax(targets, axis=-1)).mean()
        return new_state, {"loss": loss, "top1": top1}

    def updates(state: TrainState, data: Any, steps: Any) -> tuple[TrainState, Metrics]:
        def one(state: TrainState, step: Any) -> tuple[TrainState, Metrics]:
            return train_step(state, fetch(data, step))

        count = len(jax.tree.leaves(steps)[0])
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        if count > 1 and not on_cpu:
            return jax.lax.scan(one, state, steps)
        # Written out: the gradient of a convolution inside a loop is 6 to 28 times as slow on XLA:CPU.
        metrics = []
        for number in range(count):
            state, found = one(state, jax.tree.map(lambda leaf, n=number: leaf[n], steps))
            metrics.append(found)
        return state, jax.tree.map(lambda *values: jnp.stack(values), *metrics)

    whole = sharding.replicated(mesh)
    return jax.jit(
        updates,
        in_shardings=(whole, whole, None),  # steps are where the feed has put them
        out_shardings=(whole, whole),
        donate_argnums=0,
    )


def make_eval_step(
    config: Config,
    model: nn.Module,
    mesh: Mesh,
    fetch: Callable[[Any, Any], Batch] = lambda data, batch: batch,
) -> Callable[[TrainState, Any, Any], Metrics]:
    """Returns the jitted evaluation: sums over the unmasked examples of loss, top1, top5, count.

    Where the state holds averaged weights, the same pass gives average_loss, average_top1 and average_top5, theirs.
    Args are those of `make_train_step`; it is called with the state, a feed's `data`, and what the feed yields.
    """

    def eval_step(state: TrainState, data: Any, places: Any) -> Metrics:
        batch = fetch(data, places)
        images = evaluation_images(batch["image"], config.augment)
        mask = batch["mask"].astype(jnp.float32)
        sums = {"count": mask.sum()}
        raw = {"params": state.params, "batch_stats": state.batch_stats}
        for prefix, variables in (("", raw), ("average_", state.average)):
            if not variables:
                continue
            logits = model.apply(variables, images, train=False)
            losses = cross_entropy(logits, jax.nn.one_hot(batch["label"], logits.shape[-1]))
            sums |= {
                f"{prefix}loss": jnp.where(batch["mask"], losses, 0).sum(),
                f"{prefix}top1": (is_top1(logits, batch["label"]) * mask).sum(),
                f"{prefix}top5": (is_top5(logits, batch["label"]) * mask).sum(),
            }
        return sums

    whole = sharding.replicated(mesh)
    return jax.jit(eval_step, in_shardings=(whole, whole, None), out_shardings=whole)


def evaluate(
    eval_step: Callable, state: TrainState, data: Any, batches: Iterable
) -> dict[str, float]:
    """Runs an evaluation pass and returns its means: what the step sums, top1 and top5 from 0 to 1, and count."""
    total: Metrics | None = None
    for batch in batches:
        sums = eval_step(state, data, batch)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    sums = {k: float(v) for k, v in jax.device_get(total).items()}
    count = sums.pop("count")
    return {k: v / max(count, 1) for k, v in sums.items()} | {"count": int(count)}


def make_recalibration(
    config: Config,
    model: nn.Module,
    mesh: Mesh,
    fetch: Callable[[Any, Any], Batch] = lambda data, batch: batch,
    drop: optax.Schedule = lambda step: 1.0,
) -> Callable[[Any, Any, Iterable, Any], Any]:
    """Returns what measures the running statistics anew: each their mean over batches of the training set.

    Statistics averaged over weights that moved are not those of the averaged weights.

    Args:
      config: the configuration.
      model: the network, with batch normalisation.
      mesh: the devices.
      fetch: as in `make_train_step`.
      drop: as in `make_train_step`.

    Returns:
      ``recalibrate(variables, data, calls, step) -> batch_stats``: `data`, and each of `calls`, as a feed gives
      them; dropping as at `step`.

    Source: Izmailov et al. 2018, "Averaging weights leads to wider optima", section 3.2.
    """
    # A momentum of 1 makes the running statistics those of the last batch. The loss itself is not asked for.
    measured = model.clone(norm_momentum=1.0)

    def statistics(variables: Any, number: jax.Array, now: jax.Array, data: Any, step: Any) -> Any:
        _, (_, _, batch_stats) = make_loss(config, measured, lambda _: drop(now))(
            variables["params"], variables["batch_stats"], number, fetch(data, step)
        )
        return batch_stats

    whole = sharding.replicated(mesh)
    places = (whole, whole, whole, whole, None)
    measure = jax.jit(statistics, in_shardings=places, out_shardings=whole)

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
