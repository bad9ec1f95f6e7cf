"""The two compiled functions: one update, and the sums of one evaluation batch."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flax_resnet.augment import evaluation_images, training_batch
from flax_resnet.config import Config
from flax_resnet.training import sharding
from flax_resnet.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# Streams of random numbers: fold_in(fold_in(key(seed), STREAM), step), then the row. Weights use key(seed).
AUGMENT_STREAM, DROPOUT_STREAM = 1, 2


def cross_entropy(logits: jax.Array, targets: jax.Array, smoothing: float) -> jax.Array:
    """Softmax cross-entropy [N] of logits [N, K] and soft labels [N, K], smoothed.

    Source: label smoothing, Szegedy et al. 2016, "Rethinking the Inception architecture", section 7.
    """
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, smoothing))


def is_top1(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns 1 where the largest logit is the label's, else 0: float32 [N]."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def is_top5(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns 1 where the label's logit is among the five largest, else 0: float32 [N]."""
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    return (best == labels[:, None]).any(axis=-1).astype(jnp.float32)


def make_train_step(
    config: Config, model: nn.Module, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the jitted update; it consumes (donates) the state it is given.

    The metrics are those of the batch before the update: loss (mean) and top1 (share), float32 scalars. Of a
    mixed label, top1 asks for the larger part.
    """
    seed, smoothing = config.train.seed, config.train.label_smoothing

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def key(stream: int) -> jax.Array:
            return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), state.step)

        images, targets = training_batch(
            key(AUGMENT_STREAM), batch["image"], batch["label"], model.num_classes, config.augment
        )

        def loss_fn(params: optax.Params) -> tuple[jax.Array, tuple]:
            logits, updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key(DROPOUT_STREAM)},
            )
            loss = cross_entropy(logits, targets, smoothing).mean()
            return loss, (logits, updated.get("batch_stats", {}))

        (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        top1 = is_top1(logits, jnp.argmax(targets, axis=-1)).mean()
        return new_state, {"loss": loss, "top1": top1}

    whole = sharding.replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(whole, sharding.split(mesh)),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )


def make_eval_step(
    config: Config, model: nn.Module, mesh: Mesh
) -> Callable[[TrainState, Batch], Metrics]:
    """Returns the jitted evaluation: sums over the unmasked examples of loss, top1, top5, count."""

    def eval_step(state: TrainState, batch: Batch) -> Metrics:
        images = evaluation_images(batch["image"], config.augment)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        logits = model.apply(variables, images, train=False)
        mask = batch["mask"].astype(jnp.float32)
        targets = jax.nn.one_hot(batch["label"], logits.shape[-1])
        losses = cross_entropy(logits, targets, 0.0)
        return {
            "loss": jnp.where(batch["mask"], losses, 0).sum(),
            "top1": (is_top1(logits, batch["label"]) * mask).sum(),
            "top5": (is_top5(logits, batch["label"]) * mask).sum(),
            "count": mask.sum(),
        }

    whole = sharding.replicated(mesh)
    return jax.jit(eval_step, in_shardings=(whole, sharding.split(mesh)), out_shardings=whole)


def evaluate(eval_step: Callable, state: TrainState, batches: object) -> dict[str, float]:
    """Runs an evaluation pass and returns its means: loss, top1 and top5 (0 to 1), and count."""
    total: Metrics | None = None
    for batch in batches:
        sums = eval_step(state, batch)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    sums = {k: float(v) for k, v in jax.device_get(total).items()}
    count = sums.pop("count")
    return {k: v / max(count, 1) for k, v in sums.items()} | {"count": int(count)}
