"""A run as it was saved: read back from its folder, which is all it takes."""

import pathlib
from typing import Any, NamedTuple

import flax.linen as nn

from flax_resnet.config import Config, freeze
from flax_resnet.config.plan import Plan, planned_optimizer
from flax_resnet.errors import CheckpointError
from flax_resnet.training import sharding
from flax_resnet.training.runs.checkpoint import Checkpoints
from flax_resnet.training.state import TrainState, abstract_state, build_model


class SavedRun(NamedTuple):
    """A checkpoint of a run, with what it was trained as."""

    config: Config
    model: nn.Module
    class_names: tuple[str, ...]
    state: TrainState
    step: int

    def variables(self, *, average: bool = True) -> dict[str, Any]:
        """Returns {"params", "batch_stats"}: with `average`, the averaged ones where the run kept them."""
        if average and self.state.average:
            return self.state.average
        return {"params": self.state.params, "batch_stats": self.state.batch_stats}


def is_run(path: str | pathlib.Path) -> bool:
    """Whether a path is that of a run folder."""
    return (pathlib.Path(path).expanduser() / "checkpoints").is_dir()


def read_run(path: str | pathlib.Path, checkpoint: str | int = "last") -> SavedRun:
    """Reads a checkpoint: "last", "best" by what the run was judged by, or a saved step.

    Raises:
      CheckpointError: there is no such run or checkpoint, or it is not what was saved.
    """
    folder = pathlib.Path(path).expanduser().resolve()
    if not is_run(folder):
        raise CheckpointError(f"{folder} is no run folder: it has no checkpoints/")
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        step = checkpoints.resolve(checkpoint)
        run = checkpoints.run(step)
        config, num_classes = freeze(run["config"]), int(run["num_classes"])
        model = build_model(config, num_classes)
        optimizer = planned_optimizer(config, Plan.nominal(num_classes))
        shapes = abstract_state(config, model, optimizer, sharding.make_mesh())
        state = checkpoints.restore(step, shapes).state
    finally:
        checkpoints.close()
    return SavedRun(config, model, tuple(run["class_names"]), state, step)
