"""Data parallelism over one mesh axis, `data`.

Batches are split along it. Each device holds the whole training state or, with ``train.sharding="optimizer"``, its
share of the optimizer state and of the moving average of the weights. Parameters and statistics are always whole.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flax_resnet.errors import ConfigError


def make_mesh() -> Mesh:
    """Return the mesh over all devices of all processes."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def on_mesh(function: Callable, mesh: Mesh) -> Callable:
    """Return the function, traced with `mesh` as the ambient mesh.

    Operations ask for it (`dispatch.batch_shards`) to keep sums over the images of each device apart.
    """

    @functools.wraps(function)
    def traced(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding in which every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Return the sharding of [N, ...] that splits the batch axis 0 over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def split_steps(mesh: Mesh) -> NamedSharding:
    """Return the sharding of [steps or microbatches, N, ...] that splits the batch axis 1 over the devices."""
    return NamedSharding(mesh, PartitionSpec(None, "data"))


def split_parameter(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """Return the sharding that splits the first axis whose size the number of devices divides.

    Without such an axis, every device holds the whole array. Vectors stay whole, too. They are 0.2 % of ResNet-50's
    state, and if they were split, XLA would also split the batch statistics: 268 collectives a step, not 168. With
    the largest axis in place of the first one, it compiled 40 kernels more.
    """
    fitting = [axis for axis, size in enumerate(shape) if size % mesh.size == 0]
    if len(shape) < 2 or not fitting or mesh.size == 1:
        return replicated(mesh)
    return NamedSharding(mesh, PartitionSpec(*(None,) * fitting[0], "data"))


def split_parameters(mesh: Mesh, tree: Any) -> Any:
    """Return `split_parameter` of each leaf of a tree."""
    return jax.tree.map(lambda leaf: split_parameter(mesh, leaf.shape), tree)


def state_shardings(state: Any, mesh: Mesh, kind: str) -> Any:
    """Return the sharding of each leaf of a training state, as a tree like the state.

    Args:
      state: the training state, or its shapes.
      mesh: the devices.
      kind: the value of `train.sharding`.
    """
    whole = jax.tree.map(lambda leaf: replicated(mesh), state)
    if kind == "replicated":
        return whole
    params = {name: split_parameters(mesh, x) for name, x in state.ema.items() if name == "params"}
    opt_state = split_parameters(mesh, state.opt_state)
    return dataclasses.replace(whole, opt_state=opt_state, ema={**whole.ema, **params})


def constrained(state: Any, mesh: Mesh, kind: str) -> Any:
    """Return a training state with its `state_shardings`, inside a compiled function."""
    return jax.lax.with_sharding_constraint(state, state_shardings(state, mesh, kind))


def gathered(tree: Any, mesh: Mesh) -> Any:
    """Return a tree of arrays with every array whole on every device; what is whole already is not copied."""
    return jax.device_put(tree, replicated(mesh))


def bytes_per_device(tree: Any) -> int:
    """Return the bytes that a tree of arrays, or of shapes with shardings, takes on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def check_batch(mesh: Mesh, batch_size: int, key: str) -> None:
    """Raise ConfigError if the global batch size is no multiple of the number of devices."""
    if batch_size % mesh.size:
        raise ConfigError(
            key=key, value=batch_size, allowed=f"a multiple of the {mesh.size} devices"
        )


def round_up(mesh: Mesh, batch_size: int) -> int:
    """Return the batch size rounded up to a multiple of the number of devices, for padded batches."""
    return -(-batch_size // mesh.size) * mesh.size


def local_rows(batch_size: int) -> slice:
    """Return this process's rows of the global batch."""
    share = batch_size // jax.process_count()
    return slice(share * jax.process_index(), share * (jax.process_index() + 1))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Return a tree of host arrays, equal in all processes, with each array on every device."""
    everywhere = replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(everywhere, np.asarray(leaf)), tree
    )


def place(batch: dict[str, np.ndarray], mesh: Mesh, *, steps: bool = False) -> dict[str, jax.Array]:
    """Return the global batch made of the rows of all processes. With `steps`, arrays are [steps, rows, ...]."""
    sharding = split_steps(mesh) if steps else split(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
