"""Data parallelism over one mesh axis, `data`: batches are split along it, everything else is replicated."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flax_resnet.errors import ConfigError


def make_mesh() -> Mesh:
    """Return the mesh over all devices of all processes."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding in which every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Return the sharding of [N, ...] that splits the batch axis 0 over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def split_steps(mesh: Mesh) -> NamedSharding:
    """Return the sharding of [steps or microbatches, N, ...] that splits the batch axis 1 over the devices."""
    return NamedSharding(mesh, PartitionSpec(None, "data"))


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
