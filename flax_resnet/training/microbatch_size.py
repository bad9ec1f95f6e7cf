"""How many images' gradient is computed at once: the whole batch, a number, or as many as memory holds."""

import logging
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from flax_resnet.config import Config
from flax_resnet.errors import ConfigError
from flax_resnet.training import memory

log = logging.getLogger("flax_resnet")

# Share of the memory: the rest goes to what no analysis counts, such as convolutions' workspace.
USABLE = 0.9


def microbatches_of(config: Config, mesh: Mesh) -> int | None:
    """Return into how many microbatches `train.microbatch_size` divides a batch; None for "auto".

    Raises:
      ConfigError: it does not divide the batch, or the devices or groups not it.
    """
    train, text = config.train, config.train.microbatch_size
    if text == "auto":
        return None
    size = train.batch_size if text == "whole" else int(text)
    if train.batch_size % size or not _divides(config, mesh, size):
        raise ConfigError(
            f"train.microbatch_size={text!r}: must divide train.batch_size={train.batch_size} and be a multiple of "
            f"the {mesh.size} devices and of model.norm_groups={config.model.norm_groups}"
        )
    return train.batch_size // size


def _divides(config: Config, mesh: Mesh, size: int) -> bool:
    return size % mesh.size == 0 and size % config.model.norm_groups == 0


def choose_microbatches(config: Config, mesh: Mesh, lower: Callable[[int], Any]) -> int:
    """Return the least number of microbatches, a power of two, whose compiled step fits into memory.

    Args:
      config: the configuration.
      mesh: the devices.
      lower: number of microbatches -> the training step, lowered.

    Raises:
      ConfigError: not even the smallest does.
    """
    count, size, limit = 1, config.train.batch_size, USABLE * -_most(-available_memory())
    while True:
        need = _most(_need(lower(count)) * (len(mesh.local_devices) if _shared() else 1))
        told = f"{need / 2**30:.1f} GiB of {limit / 2**30:.1f}"
        if need <= limit:
            log.info("microbatch: %d images, %s", size // count, told)
            return count
        log.info("microbatch: %d images would take %s", size // count, told)
        if size % (2 * count) or not _divides(config, mesh, size // (2 * count)):
            raise ConfigError(
                f"train.microbatch_size='auto': even {size // count} images, the fewest that {mesh.size} devices "
                f"and model.norm_groups={config.model.norm_groups} divide, take {told}: a smaller data.image_size "
                "or model, or model.remat='block'"
            )
        count *= 2


def _most(amount: float) -> float:
    """Returns the most of all processes' amounts, so that all choose alike."""
    if jax.process_count() == 1:
        return amount
    return float(multihost_utils.process_allgather(np.float32(amount)).max())


def _need(lowered: Any) -> float:
    try:
        return needed_memory(lowered.compile())
    except (
        jax.errors.JaxRuntimeError
    ) as error:  # where what is tried out while compiling does not fit
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf


def needed_memory(compiled: Any) -> int:
    """Returns the bytes that a compiled function takes on each device."""
    found = compiled.memory_analysis()
    return (
        found.temp_size_in_bytes
        + found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
    )


def _shared() -> bool:
    return jax.default_backend() == "cpu"  # where all devices are one machine's memory


def available_memory() -> int:
    """Returns the bytes that a GPU gives to JAX, or that the machine has left for this process."""
    if _shared():
        return memory.available()
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    return min((limit for limit in limits if limit), default=sys.maxsize)
