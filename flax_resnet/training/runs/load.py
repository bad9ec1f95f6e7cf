"""Loading of a run: its parameters, statistics and moving average, without the optimizer state."""

import logging
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flax_resnet.config import Config
from flax_resnet.errors import CheckpointError
from flax_resnet.models.network import Network
from flax_resnet.training import sharding
from flax_resnet.training.processes.exchange import first
from flax_resnet.training.runs.checkpoint import Checkpoints
from flax_resnet.training.runs.folder import RunFolder
from flax_resnet.training.runs.metadata import RunMetadata
from flax_resnet.training.runs.scores import best_step, scores
from flax_resnet.training.state import build_model

log = logging.getLogger("flax_resnet")


class LoadedRun(NamedTuple):
    """A checkpoint of a run, with its configuration, network and class names.

    Attributes:
      config: the configuration.
      model: the network.
      class_names: names of the classes, in the order of the logits.
      variables: {"params", "batch_stats"} of the weights.
      ema: {"params", "batch_stats"} of the moving average; {} if the run kept none.
      step: number of updates made.
      metadata: the metadata of the checkpoint.
    """

    config: Config
    model: Network
    class_names: tuple[str, ...]
    variables: dict[str, Any]
    ema: dict[str, Any]
    step: int
    metadata: RunMetadata

    def best_variables(self, *, ema: bool = True) -> dict[str, Any]:
        """Return the moving average if `ema` is set and the run kept one, else the weights."""
        return self.ema if ema and self.ema else self.variables


def is_run(path: str | pathlib.Path) -> bool:
    """Return whether a path is a run folder."""
    return (pathlib.Path(path).expanduser() / "checkpoints").is_dir()


def load_run(path: str | pathlib.Path, checkpoint: str | int = "last") -> LoadedRun:
    """Read a checkpoint of a run.

    Args:
      path: the run folder.
      checkpoint: "last"; "best", the saved step with the best evaluation by `train.monitor` among the records, or
        the last one without evaluations; or a saved step.

    Raises:
      CheckpointError: there is no such run or checkpoint, or the checkpoint is corrupted.
      WorkdirError: another version of flax_resnet wrote the run, or its records cannot be read.
    """
    folder = pathlib.Path(path).expanduser().resolve()
    if not is_run(folder):
        raise CheckpointError("is no run folder: it has no checkpoints/", key=folder)
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        best = best_saved_step(RunFolder(folder), checkpoints) if checkpoint == "best" else None
        step = first(lambda: chosen_step(checkpoints, checkpoint, best))
        metadata = checkpoints.metadata(step)
        config = metadata.frozen_config
        model = build_model(config, metadata.num_classes)
        variables = abstract_variables(model, config.data.image_size)
        parts = {**variables, "ema": variables if config.averages_weights else {}}
        state = checkpoints.restore_parts(step, parts).state
    finally:
        checkpoints.close()
    if not metadata.ema_measured:
        log.warning(
            "checkpoint %d of %s was saved on a signal, before the batch statistics of its moving average were "
            "measured (ema.bn_batches); resume the run to measure them",
            step,
            folder,
        )
    ema = state.pop("ema")
    return LoadedRun(config, model, metadata.class_names, state, ema, step, metadata)


def chosen_step(checkpoints: Checkpoints, checkpoint: str | int, best: int | None = None) -> int:
    """Return the saved step that "last", "best" or a step means.

    Args:
      checkpoints: the checkpoints of a run.
      checkpoint: "last", "best", or a saved step.
      best: the best saved step; None means the last one.

    Raises:
      CheckpointError: there is no such checkpoint.
    """
    steps = checkpoints.steps()
    if not steps:
        raise CheckpointError("holds no checkpoint", key=checkpoints.folder)
    if checkpoint == "last":
        return steps[-1]
    if checkpoint == "best":
        return steps[-1] if best is None else best
    if str(checkpoint) in map(str, steps):
        return int(checkpoint)
    raise CheckpointError(
        f"is not in {checkpoints.folder}",
        key="checkpoint",
        value=checkpoint,
        allowed=("last", "best", *map(str, steps)),
    )


def best_saved_step(folder: RunFolder, checkpoints: Checkpoints) -> int | None:
    """Return the saved step with the best score by the run's records, or None if no saved step has one.

    The metric is `train.monitor` of the last checkpoint.

    Raises:
      CheckpointError: the metadata of the last checkpoint cannot be read.
      WorkdirError: the records or the configuration cannot be read.
    """
    if not (steps := checkpoints.steps()):
        return None
    config = checkpoints.metadata(steps[-1]).frozen_config
    found = scores(folder.read_records(), config, folder.scores_from())
    return best_step({step: score for step, score in found.items() if step in steps})


def abstract_variables(model: Network, image_size: int) -> dict[str, Any]:
    """Return a network's `params` and `batch_stats` as shapes and dtypes, replicated over the devices."""
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
