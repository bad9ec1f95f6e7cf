"""The compiled functions: one update, the sums of one evaluation batch, the statistics of one batch."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from flax_resnet.augment import evaluation_images, evaluation_views, training_batch
from flax_resnet.config import Config
from flax_resnet.training import average, loss_scale, sharding
from flax_resnet.training.distill import Teacher, divergence_sum
from flax_resnet.training.loss import loss_sum, loss_weight
from flax_resnet.training.metrics import AVERAGE, batch_sums, is_top1, record
from flax_resnet.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# Streams of random numbers: fold_in(fold_in(key(seed), STREAM), step), then the row. Weights use key(seed).
AUGMENT_STREAM, DROPOUT_STREAM = 1, 2


def stream_key(seed: int, stream: int, step: jax.Array | int) -> jax.Array:
    """Returns the key of one of the streams at a step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)


def constant(step: jax.Array) -> float:
    """Is the schedule of what does not change."""
    del step
    return 1.0


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
      ``gradient(params, batch_stats, step, batch, scale, taught) -> (grads, metrics, batch_stats)``: the gradient
      of `scale` times the loss, where `taught` holds the variables of the teacher, if there is one; the batch's
      loss (mean) and top1 (share; of a mixed label, the larger part counts).
    """
    seed, apart = config.train.seed, config.model.norm_scope == "local" and mesh.size > 1
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


def by_device(differentiated: Callable, mesh: Mesh, dtype: str) -> Callable:
    """Returns the gradient that each device computes of its own examples, summed over the devices in two parts.

    The first, of the head and the last stage, runs while the other stages' gradients are computed. XLA, left to
    spread the whole, sums each layer's gradient where it is computed, in the dtype of its convolution: 35 sums in
    ResNet-50. The running statistics are the mean over the devices; what drops out is drawn by each.

    Args:
      differentiated: ``(params, scale, batch_stats, images, targets, weight, key, drop_factor, taught)`` to
        ``grads, (loss, hits, batch_stats)``, sums over the examples but for the last.
      mesh: the devices.
      dtype: in which gradients are summed over them.
    """
    whole, rows = PartitionSpec(), PartitionSpec("data")

    def own(params: Any, scale: Any, batch_stats: Any, *batch: Any) -> tuple:
        images, targets, weight, key, drop_factor, taught = batch
        key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        grads, (loss, hits, new) = differentiated(
            params, scale, batch_stats, images, targets, weight, key, drop_factor, taught
        )
        # Each part one vector: XLA sums by itself what is above 30 MB, or has a layout of its own, as 1x1 kernels.
        narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), grads)
        early, early_tree = ravel_pytree({name: narrow.pop(name) for name in _first_ready(narrow)})
        late, late_tree = ravel_pytree(narrow)
        early = jax.lax.psum(early, "data")
        # XLA would join both sums, and wait for the last gradient.
        late, early = jax.lax.optimization_barrier((late, early))
        late, loss, hits = jax.lax.psum((late, loss, hits), "data")
        narrow = early_tree(early) | late_tree(late)
        summed = jax.tree.map(lambda sum, leaf: sum.astype(leaf.dtype), narrow, grads)
        return summed, (loss, hits, jax.lax.pmean(new, "data"))

    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(whole, whole, whole, rows, rows, whole, whole, whole, whole),
        out_specs=whole,
        check_vma=False,  # else JAX sums each gradient where it is computed
    )


def _first_ready(grads: dict[str, Any]) -> list[str]:
    """Returns the modules of the head and the last stage: whose gradients the backward pass begins with."""
    stages = [int(found[1]) for name in grads if (found := re.match(r"layer(\d+)_", name))]
    last = f"layer{max(stages, default=0)}_"
    return [name for name in grads if name == "fc" or name.startswith(last)]


def repeat(function: Callable, carry: Any, xs: Any, mesh: Mesh) -> tuple[Any, Any]:
    """Is `jax.lax.scan`; written out on CPU, where a convolution's gradient in a loop is 6 to 28 times as slow."""
    if mesh.devices.flat[0].platform != "cpu":
        return jax.lax.scan(function, carry, xs)
    outputs = []
    for number in range(len(jax.tree.leaves(xs)[0])):
        carry, output = function(carry, jax.tree.map(lambda leaf, n=number: leaf[n], xs))
        outputs.append(output)
    return carry, jax.tree.map(lambda *values: jnp.stack(values), *outputs)


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
      ``updates(state, data, steps, *taught) -> (state, metrics)``: `data` and each element of `steps` (pytree
      with leading axis [steps]) go to `fetch`; `taught` are the teacher's variables, if there is one. The metrics
      are those of each batch before its update, as `make_gradient` says, and with float16 loss_scale, and skipped,
      1 where its gradient was not finite: float32 [steps].
    """
    gradient = make_gradient(config, model, mesh, parts=parts, teacher=teacher, drop=drop)

    def train_step(
        state: TrainState, batch: Batch, taught: Any = None
    ) -> tuple[TrainState, Metrics]:
        scale = loss_scale.factor(state.loss_scale)
        grads, metrics, batch_stats = gradient(
            state.params, state.batch_stats, state.step, batch, scale, taught
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
            return train_step(state, fetch(data, step), *taught)

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
    return jax.jit(eval_step, in_shardings=(whole, whole, None), out_shardings=whole)


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
        return gradient(variables["params"], variables["batch_stats"], number, batch, 1.0)[-1]

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
