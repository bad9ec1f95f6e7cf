"""Data parallelism: one mesh axis, `data`. Batches are split along it, everything else is replicated."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flax_resnet.errors import ConfigError


def make_mesh() -> Mesh:
    """Returns the mesh over all devices of all processes."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The leading (batch) dimension is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def split_steps(mesh: Mesh) -> NamedSharding:
    """The dimension after the leading one, which is steps or parts, is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(None, "data"))


def check_batch(mesh: Mesh, batch_size: int, key: str) -> None:
    """Raises ConfigError where a global batch does not divide over the devices."""
    if batch_size % mesh.size:
        raise ConfigError(f"{key}={batch_size}: must be a multiple of the {mesh.size} devices")


def round_up(mesh: Mesh, batch_size: int) -> int:
    """Returns the next batch size that divides over the devices, for batches that are padded anyway."""
    return -(-batch_size // mesh.size) * mesh.size


def local_rows(batch_size: int) -> slice:
    """Returns this process's rows of the global batch."""
    share = batch_size // jax.process_count()
    return slice(share * jax.process_index(), share * (jax.process_index() + 1))


def place(batch: dict[str, np.ndarray], mesh: Mesh, *, steps: bool = False) -> dict[str, jax.Array]:
    """Builds the global batch of every process's rows; with `steps`, axis 0 is steps, and 1 the rows."""
    sharding = split_steps(mesh) if steps else split(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
