"""The microbatch size: the whole batch, a fixed number, or the largest size that fits in memory."""

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
from flax_resnet.errors import ConfigError, is_out_of_memory
from flax_resnet.training import memory

log = logging.getLogger("flax_resnet")

# Largest share of the memory that a program may need according to XLA's analysis. The rest is for what the analysis
# misses, such as the workspace of convolutions.
USABLE = 0.9


def microbatches_of(config: Config, mesh: Mesh, resumed: int | None = None) -> int | None:
    """Return the number of microbatches per batch that `train.microbatch_size` gives; `resumed` for "auto".

    Args:
      config: the configuration.
      mesh: the devices.
      resumed: the number of a resumed run, or None.

    Raises:
      ConfigError: the size does not divide the batch, or is no multiple of the number of devices or of the images
        of a ghost group.
    """
    batch_size, text = config.train.batch_size, config.train.microbatch_size
    if text == "auto":
        if resumed is None:
            return None
        size = batch_size // resumed
    else:
        size = batch_size if text == "whole" else int(text)
    if batch_size % size or not _fits(config, mesh, size):
        chosen = text == "auto"
        raise ConfigError(
            f"the run began with microbatches of {size} images" if chosen else "",
            key="train.microbatch_size",
            value=text,
            allowed=f"a divisor of train.batch_size={batch_size}, and a multiple of {_units(config, mesh)}",
            cure="resume on as many devices as before, or with --resume=force" if chosen else "",
        )
    return batch_size // size


def _fits(config: Config, mesh: Mesh, size: int) -> bool:
    return size % mesh.size == 0 and size % _images_together(config) == 0


def _images_together(config: Config) -> int:
    """Return the number of images of a ghost group, which one microbatch must hold; 1 without groups."""
    groups = config.model.ghost_groups
    return config.train.batch_size // groups if groups > 1 else 1


def _units(config: Config, mesh: Mesh) -> str:
    groups = config.model.ghost_groups
    devices = f"the {mesh.size} devices"
    if groups == 1:
        return devices
    return f"{devices} and of the {_images_together(config)} images of each of model.norm_groups={groups}"


def choose_microbatches(config: Config, mesh: Mesh, lower: Callable[[int], Any]) -> int:
    """Return the smallest number of microbatches, a power of two, whose compiled step fits in memory.

    Args:
      config: the configuration.
      mesh: the devices.
      lower: a function from the number of microbatches to the lowered training step.

    Raises:
      ConfigError: not even the smallest microbatch fits.
    """
    count, size, limit = 1, config.train.batch_size, USABLE * -_most(-available_memory())
    while True:
        need = _most(_need(lower(count)) * sharing_devices(mesh))
        usage = f"{need / 2**30:.1f} GiB of {limit / 2**30:.1f}"
        if need <= limit:
            log.info("microbatch: %d images, %s", size // count, usage)
            return count
        log.info("microbatch: %d images would take %s", size // count, usage)
        if size % (2 * count) or not _fits(config, mesh, size // (2 * count)):
            raise ConfigError(
                f"even a microbatch of {size // count} images takes {usage}, and smaller ones are no multiple of "
                f"{_units(config, mesh)}",
                key="train.microbatch_size",
                value="auto",
                cure="use a smaller data.image_size or model, or model.remat='block'",
            )
        count *= 2


def _most(amount: float) -> float:
    """Return the maximum over all processes, so that all processes make the same choice."""
    if jax.process_count() == 1:
        return amount
    return float(multihost_utils.process_allgather(np.float32(amount)).max())


def _need(lowered: Any) -> float:
    try:
        return needed_memory(lowered.compile())
    except jax.errors.JaxRuntimeError as error:
        # Compilation runs trial kernels, which may not fit in memory.
        if not is_out_of_memory(error):
            raise
        return math.inf


def needed_memory(compiled: Any) -> int:
    """Return the bytes of memory that a compiled function takes on each device."""
    analysis = compiled.memory_analysis()
    return (
        analysis.temp_size_in_bytes
        + analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def _shared() -> bool:
    return jax.default_backend() == "cpu"  # all CPU devices share the machine's memory


def sharing_devices(mesh: Mesh) -> int:
    """Return the number of devices that share one memory, the one of `available_memory`."""
    return len(mesh.local_devices) if _shared() else 1


def available_memory() -> int:
    """Return the bytes available to JAX: the smallest limit of its devices, or on CPU the host's free memory."""
    if _shared():
        return memory.available()
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    return min((limit for limit in limits if limit), default=sys.maxsize)
