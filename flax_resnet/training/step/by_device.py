"""Per-device gradients: each device differentiates the loss of its own examples; two all-reduces add them up."""

from collections.abc import Callable
from typing import Any

import jax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from flax_resnet.models.network import Network
from flax_resnet.training.step.training_loss import Gradient, LossInputs


def by_device(gradient: Callable, model: Network, mesh: Mesh, dtype: str) -> Gradient:
    """Return a function that computes the gradient of each device's own rows, and sums it over the devices.

    There are two sums. The first one is over the gradients of the head and the last stage, and overlaps the
    computation of the other gradients. Without this function, XLA sums each layer's gradient as soon as it is
    computed, in the dtype of its convolution: 35 sums in ResNet-50.

    The running statistics are averaged over the devices. Each device draws its own dropout.

    Args:
      gradient: the gradient of a batch on one device; its metrics are sums over the examples.
      model: the network; it names its head and its last stage.
      mesh: the devices.
      dtype: dtype of the gradients in the sums over the devices.
    """
    stages = model.stages()
    last_stage = {name for block in stages[-1] for name in block} if stages else set()
    ready_first = {model.head, *last_stage}  # the backward pass begins with these

    def of_own_rows(params: Any, inputs: LossInputs) -> tuple:
        key = jax.random.fold_in(inputs.dropout_key, jax.lax.axis_index("data"))
        grads, (metrics, batch_stats) = gradient(params, inputs._replace(dropout_key=key))
        # Ravel each part into one vector, because XLA does not merge sums of arrays above 30 MB, or of arrays with
        # different layouts, such as 1x1 kernels.
        narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), grads)
        early = {name: leaves for name, leaves in narrow.items() if name in ready_first}
        late = {name: leaves for name, leaves in narrow.items() if name not in ready_first}
        early_sum, early_tree = ravel_pytree(early)
        late_sum, late_tree = ravel_pytree(late)
        early_sum = jax.lax.psum(early_sum, "data")
        # Without the barrier, XLA merges both sums and waits for the last gradient.
        late_sum, early_sum = jax.lax.optimization_barrier((late_sum, early_sum))
        late_sum, metrics = jax.lax.psum((late_sum, metrics), "data")
        narrow = early_tree(early_sum) | late_tree(late_sum)
        summed = jax.tree.map(lambda leaf, own: leaf.astype(own.dtype), narrow, grads)
        return summed, (metrics, jax.lax.pmean(batch_stats, "data"))

    everywhere: Any = PartitionSpec()
    rows: Any = PartitionSpec("data")

    def over_devices(params: Any, inputs: LossInputs) -> tuple:
        specs = type(inputs)(*(everywhere for _ in inputs))._replace(images=rows, targets=rows)
        function = jax.shard_map(
            of_own_rows,
            mesh=mesh,
            in_specs=(everywhere, specs),
            out_specs=everywhere,
            check_vma=False,  # otherwise JAX sums each gradient separately
        )
        return function(params, inputs)

    return over_devices
