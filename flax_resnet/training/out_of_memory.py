"""The error for a program that does not fit in memory: what it needs, and the settings that reduce it."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from flax_resnet.config import Config
from flax_resnet.errors import ConfigError, is_out_of_memory, one_line
from flax_resnet.training import sharding
from flax_resnet.training.microbatch_size import (
    available_memory,
    needed_memory,
    sharing_devices,
)
from flax_resnet.training.state import TrainState


def step_memory(
    config: Config, mesh: Mesh, shapes: TrainState, compile_step: Callable[[], Any]
) -> contextlib.AbstractContextManager[None]:
    """Convert an error of XLA for a full memory, inside this block of training steps, to a ConfigError.

    Args:
      config: the configuration.
      mesh: the devices.
      shapes: the training state, as shapes with shardings.
      compile_step: a function that returns the compiled step, whose needs the error names.
    """

    def explained(reason: str) -> ConfigError:
        return ConfigError(
            f"the training step {_needs(mesh, shapes, compile_step)}: {reason}",
            key="train.batch_size",
            value=config.train.batch_size,
            cure="; ".join(smaller_settings(config)),
        )

    return _converted(explained)


def evaluation_memory(batch_size: int) -> contextlib.AbstractContextManager[None]:
    """Convert an error of XLA for a full memory, inside this block of an evaluation, to a ConfigError."""

    def explained(reason: str) -> ConfigError:
        return ConfigError(
            f"the evaluation does not fit in memory: {reason}",
            key="train.eval_batch_size",
            value=batch_size,
            cure="decrease it",
        )

    return _converted(explained)


@contextlib.contextmanager
def _converted(explained: Callable[[str], ConfigError]) -> Iterator[None]:
    """Raise the error that `explained` returns for XLA's message, if memory is full inside this block."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise explained(one_line(error)) from error


def smaller_settings(config: Config) -> list[str]:
    """Return the changes of settings that reduce the memory of a training step, those without effect left out."""
    train, model = config.train, config.model
    rows = [
        (train.microbatch_size != "auto", "set train.microbatch_size=auto"),
        (model.remat in (None, "none"), "set model.remat=block"),
        (
            jax.device_count() > 1 and train.sharding == "replicated",
            "set train.sharding=optimizer",
        ),
        (True, f"decrease train.batch_size={train.batch_size}"),
        (True, f"decrease data.image_size={config.data.image_size}"),
    ]
    return [text for helps, text in rows if helps]


def _needs(mesh: Mesh, shapes: TrainState, compile_step: Callable[[], Any]) -> str:
    """Describe the memory that the step needs on a device, or on all that share a memory."""
    count, has = sharing_devices(mesh), available_memory()
    state = count * sharding.bytes_per_device(shapes)
    limit = f" of {_gib(has)}" if has < sys.maxsize else ""
    try:
        compiled = compile_step()
    except jax.errors.JaxRuntimeError:  # compilation runs trial kernels, which may not fit either
        return f"needs more than its state of {_gib(state)}{limit}"
    analysis = compiled.memory_analysis()
    data, temporaries = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    parts = (
        f"state {_gib(state)}, data {_gib(count * data - state)}, "
        f"temporaries {_gib(count * temporaries)}"
    )
    return f"needs {_gib(count * needed_memory(compiled))}{limit} ({parts})"


def _gib(size: int) -> str:
    return f"{max(0, size) / 2**30:.1f} GiB"
