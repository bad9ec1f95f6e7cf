"""The compiled evaluation of a batch, and a pass over a split."""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from flax_resnet.augment import evaluation_images, evaluation_views
from flax_resnet.config import Config
from flax_resnet.ops import dispatch
from flax_resnet.optim.metrics import AVERAGE, batch_sums, record
from flax_resnet.training import sharding
from flax_resnet.training.state import TrainState
from flax_resnet.training.step.gradient import Batch

Metrics = dict[str, jax.Array]


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
        compiler_options=dispatch.compiler_options(),
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
