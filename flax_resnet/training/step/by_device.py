"""Gradients that each device computes of its own examples, summed in two parts."""

import re
from collections.abc import Callable
from typing import Any

import jax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec


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
