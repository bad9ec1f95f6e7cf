"""The compiled evaluation of a batch, and a pass over a split."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from flax_resnet.augment import evaluation_images, evaluation_views
from flax_resnet.config import Config
from flax_resnet.models.network import Network
from flax_resnet.ops import dispatch
from flax_resnet.optim.evaluation_metrics import Sum, batch_sums, record
from flax_resnet.training import sharding

Batch = dict[str, jax.Array]
# {metric prefix: {"params", "batch_stats"}}; the prefix is "", and "ema_" for the moving average.
VariablesByPrefix = dict[str, dict[str, Any]]
Sums = dict[str, dict[str, Any]]


class EvalStep(Protocol):
    """The compiled evaluation of a batch."""

    def __call__(self, variables: VariablesByPrefix, data: Any, batch: Any) -> Sums:
        """Return {metric prefix: `batch_sums`} for each set of variables."""


def make_eval_step(
    config: Config,
    model: Network,
    mesh: Mesh,
    fetch: Callable[[Any, Any], Batch] = lambda data, batch: batch,
    *,
    extra: Mapping[str, Sum] | None = None,
) -> EvalStep:
    """Return the jitted evaluation of a batch. Logits are the weighted mean over an image's `evaluation_views`.

    Args:
      config: the configuration.
      model: the network.
      mesh: the devices.
      fetch: a feed's `evaluation_batch`, which returns the batch inside the compiled function.
      extra: as in `batch_sums`.
    """

    def eval_step(variables: VariablesByPrefix, data: Any, batch: Any) -> Sums:
        batch = fetch(data, batch)
        images = evaluation_images(batch["image"], config.augment)
        views = evaluation_views(images, config.augment)
        sums = {}
        for prefix, one in variables.items():
            logits = sum(share * model.apply(one, view, train=False) for share, view in views)
            of_batch = (batch["label"], batch["mask"], batch.get("index"))
            sums[prefix] = batch_sums(logits, *of_batch, extra=extra)
        return sums

    everywhere = sharding.replicated(mesh)
    return jax.jit(
        eval_step,
        in_shardings=(everywhere, everywhere, None),
        out_shardings=everywhere,
        compiler_options=dispatch.compiler_options(),
    )


def total(
    eval_step: EvalStep, variables: VariablesByPrefix, data: Any, batches: Iterable[Any]
) -> Sums:
    """Run an evaluation pass and return its sums, on the host."""
    sums = None
    for batch in batches:
        # One call at a time, while the next batch is read: with many on their way, XLA may abort a process whose
        # CPU devices meet too late in a sum.
        jax.block_until_ready(sums)
        of_batch = eval_step(variables, data, batch)
        sums = of_batch if sums is None else jax.tree.map(jnp.add, sums, of_batch)
    return jax.device_get(sums)


def evaluate(
    eval_step: EvalStep, variables: VariablesByPrefix, data: Any, batches: Iterable[Any]
) -> dict[str, float]:
    """Run an evaluation pass and return its `record`."""
    return record(total(eval_step, variables, data, batches))
