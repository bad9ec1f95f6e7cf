"""The gradient of a batch: augmented, in one part or several, over all devices together or each by itself."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flax_resnet.augment import training_batch
from flax_resnet.config import Config
from flax_resnet.optim.distillation import divergence_sum
from flax_resnet.optim.losses import loss_sum, loss_weight
from flax_resnet.optim.metrics import is_top1
from flax_resnet.optim.schedules import constant
from flax_resnet.training import sharding
from flax_resnet.training.step.by_device import by_device
from flax_resnet.training.step.loops import repeat
from flax_resnet.training.teacher import Teacher

Batch = dict[str, jax.Array]

# Streams of random numbers: fold_in(fold_in(key(seed), STREAM), step), then the row. Weights use key(seed).
AUGMENT_STREAM, DROPOUT_STREAM = 1, 2


def stream_key(seed: jax.Array | int, stream: int, step: jax.Array | int) -> jax.Array:
    """Returns the key of one of the streams at a step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)


def make_loss(config: Config, model: nn.Module, teacher: Teacher | None = None) -> Callable:
    """Returns the loss of augmented images, to be differentiated.

    Returns:
      ``loss(params, batch_stats, images, targets, weight, key, drop_factor, taught)``, which gives
      ``loss, (logits, batch_stats)``: of images [N, S, S, C] and soft labels [N, K], the sum of the losses over
      `weight` (`loss_weight` of the whole batch, of which these may be a part), the logits [N, K], and the new
      statistics. `key` draws what drops out, `drop_factor` multiplies the rates of that, and `taught` holds the
      teacher's variables.
    """
    section = config.distill

    def loss_fn(
        params: optax.Params,
        batch_stats: Any,
        images: jax.Array,
        targets: jax.Array,
        weight: jax.Array,
        key: jax.Array,
        drop_factor: jax.Array | float = 1.0,
        taught: Any = None,
    ) -> tuple:
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
            drop_factor=drop_factor,
        )
        loss = loss_sum(logits, targets, config.loss) / weight
        if teacher:
            wanted = teacher.logits(taught, images)
            apart = divergence_sum(logits, wanted, section.temperature) / config.train.batch_size
            loss = section.weight * apart + (1 - section.weight) * loss
        return loss, (logits, updated.get("batch_stats", {}))

    return loss_fn


def make_gradient(
    config: Config,
    model: nn.Module,
    mesh: Mesh,
    *,
    parts: int = 1,
    teacher: Teacher | None = None,
    drop: optax.Schedule = constant,
) -> Callable:
    """Returns the gradient of the loss of a training batch, augmented as the stream says for that step.

    In several parts, one after the other, of which each takes every `parts`-th row: memory is that of a part, and
    the gradient the same but for batch normalisation, which takes the statistics of each part, as ghost batch
    normalisation of so many groups does; the running statistics move once, by the mean over the parts.

    Args:
      config: the configuration.
      model: the network.
      mesh: the devices.
      parts: of a batch.
      teacher: whom the network learns from, if anyone.
      drop: what the rates of dropping are multiplied by at a step; `schedule.drop_factor`.

    Returns:
      ``gradient(params, batch_stats, seed, step, batch, scale, taught) -> (grads, metrics, batch_stats)``: the
      gradient of `scale` times the loss, where `seed` is the run's, and `taught` holds the variables of the
      teacher, if there is one; the batch's loss (mean) and top1 (share; of a mixed label, the larger part counts).
    """
    apart = config.model.norm_scope == "local" and mesh.size > 1
    # Where each device sees its own examples only, its batch is its group.
    loss_fn = make_loss(config, model.clone(norm_groups=1) if apart else model, teacher)

    def scaled(params: optax.Params, scale: jax.Array | float, *args: Any) -> tuple:
        loss, (logits, batch_stats) = loss_fn(params, *args)
        targets = args[2]
        hits = is_top1(logits, jnp.argmax(targets, axis=-1)).sum()
        return scale * loss, (loss, hits, batch_stats)

    differentiated = jax.grad(scaled, has_aux=True)
    if apart:
        differentiated = by_device(differentiated, mesh, config.train.gradient_dtype)

    def gradient(
        params: optax.Params,
        batch_stats: Any,
        seed: jax.Array,
        step: jax.Array,
        batch: Batch,
        scale: Any,
        taught: Any = None,
    ) -> tuple:
        key = stream_key(seed, AUGMENT_STREAM, step)
        whole = training_batch(
            key, batch["image"], batch["label"], model.num_classes, config.augment
        )
        weight, rows = loss_weight(whole[1], config.loss), len(whole[1])
        key = stream_key(seed, DROPOUT_STREAM, step)

        def one(images: jax.Array, targets: jax.Array, key: jax.Array) -> tuple:
            grads, (loss, hits, new) = differentiated(
                params, scale, batch_stats, images, targets, weight, key, drop(step), taught
            )
            return grads, {"loss": loss, "top1": hits / rows}, new

        if parts == 1:
            return one(*whole, key)

        def split(array: jax.Array) -> jax.Array:
            rowwise = array.reshape(rows // parts, parts, *array.shape[1:]).swapaxes(0, 1)
            return jax.lax.with_sharding_constraint(rowwise, sharding.split_steps(mesh))

        def add(total: Any, part: Any) -> tuple[Any, None]:
            images, *rest = part
            # Written out, nothing would keep XLA from holding all parts' activations at once: a batch of 256 of
            # resnet20 took 577 MB on CPU in one part and in four. So each part waits for the one before, by a zero
            # that is computed from its gradient. (XLA:CPU drops optimization_barrier before it schedules.)
            before = sum(leaf.ravel()[0] for leaf in jax.tree.leaves(total))
            zero = jnp.where(jnp.isfinite(before), 0 * before, 0)
            return jax.tree.map(jnp.add, total, one(images + zero, *rest)), None

        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(parts))
        pieces = (*map(split, whole), keys)
        first = jax.tree.map(lambda leaf: leaf[0], pieces)
        nothing = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one, *first)
        )
        (grads, metrics, new), _ = repeat(add, nothing, pieces, mesh)
        return grads, metrics, jax.tree.map(lambda leaf: leaf / parts, new)

    return gradient
