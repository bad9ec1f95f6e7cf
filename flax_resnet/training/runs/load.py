"""A run read back from its folder: parameters, statistics and their moving average, without the optimizer."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flax_resnet.config import Config
from flax_resnet.errors import CheckpointError
from flax_resnet.models.network import Network
from flax_resnet.training import sharding
from flax_resnet.training.runs.checkpoint import Checkpoints
from flax_resnet.training.state import build_model


class LoadedRun(NamedTuple):
    """A checkpoint of a run, with what it was trained as.

    Attributes:
      config: the configuration.
      model: the network.
      class_names: names of the classes, in the order of the logits.
      variables: {"params", "batch_stats"}.
      ema: the same of the moving average; {} where the run kept none.
      step: number of updates made.
    """

    config: Config
    model: Network
    class_names: tuple[str, ...]
    variables: dict[str, Any]
    ema: dict[str, Any]
    step: int

    def best_variables(self, *, ema: bool = True) -> dict[str, Any]:
        """Return {"params", "batch_stats"}: with `ema`, the moving average where the run kept one."""
        return self.ema if ema and self.ema else self.variables


def is_run(path: str | pathlib.Path) -> bool:
    """Return whether a path is that of a run folder."""
    return (pathlib.Path(path).expanduser() / "checkpoints").is_dir()


def load_run(path: str | pathlib.Path, checkpoint: str | int = "last") -> LoadedRun:
    """Read a checkpoint of a run, of any optimizer.

    Args:
      path: the run folder.
      checkpoint: "last", "best" by the run's `train.monitor`, or a saved step.

    Raises:
      CheckpointError: there is no such run or checkpoint, or it is not what was saved.
      WorkdirError: another version of flax_resnet wrote it.
    """
    folder = pathlib.Path(path).expanduser().resolve()
    if not is_run(folder):
        raise CheckpointError(f"{folder} is no run folder: it has no checkpoints/")
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        step = checkpoints.resolve(checkpoint)
        metadata = checkpoints.metadata(step)
        config = metadata.frozen_config
        model = build_model(config, metadata.num_classes)
        variables = abstract_variables(model, config.data.image_size)
        parts = {**variables, "ema": variables if config.ema.decay else {}}
        found = checkpoints.restore_parts(step, parts).state
    finally:
        checkpoints.close()
    ema = found.pop("ema")
    return LoadedRun(config, model, metadata.class_names, found, ema, step)


def abstract_variables(model: Network, image_size: int) -> dict[str, Any]:
    """Return shapes and dtypes of a network's `params` and `batch_stats`, replicated over the devices."""
    shape = (1, image_size, image_size, model.in_channels)
    variables = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False),
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    everywhere = sharding.replicated(sharding.make_mesh())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        {"batch_stats": {}, **variables},
    )
