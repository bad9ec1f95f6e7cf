"""A trained network with all that belongs to it: what `flax_resnet.load` returns."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.augment import evaluation_images
from flax_resnet.config import Config, Plan, freeze
from flax_resnet.errors import CheckpointError
from flax_resnet.preprocessing import prepare
from flax_resnet.training import sharding
from flax_resnet.training.checkpoint import Checkpoints
from flax_resnet.training.optimizer import make_optimizer
from flax_resnet.training.state import TrainState, abstract_state, build_model


class Prediction(NamedTuple):
    """What a network makes of N images.

    Attributes:
      labels: int32 [N], the most probable class.
      probabilities: float32 [N, K], rows sum to 1.
    """

    labels: np.ndarray
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A model, its variables, the names of its classes, and its preprocessing.

    Attributes:
      model: the linen module.
      variables: {"params": ..., "batch_stats": ...}.
      class_names: one name per class.
      config: the configuration it was trained with; holds size, crop, mean and std.
      step: the number of updates behind the variables.
    """

    model: nn.Module
    variables: dict[str, Any]
    class_names: tuple[str, ...]
    config: Config
    step: int

    def predict(self, images: np.ndarray | Sequence, *, batch_size: int = 64) -> Prediction:
        """Classifies images.

        Args:
          images: uint8 [N, H, W, 3] of any size, or a sequence of such arrays, file paths or Pillow
            images; or a single path.
          batch_size: images per call of the compiled network; the last batch is padded to it.

        Raises:
          DataError: a file cannot be read, or an array is not uint8 [H, W, 3].
        """
        pixels = prepare(images, self.config.data)
        rows = [
            self._probabilities(pixels[i : i + batch_size], batch_size)
            for i in range(0, len(pixels), batch_size)
        ]
        if not rows:
            return Prediction(
                np.zeros(0, np.int32), np.zeros((0, self.model.num_classes), np.float32)
            )
        probabilities = np.concatenate(rows)
        return Prediction(probabilities.argmax(axis=1).astype(np.int32), probabilities)

    def _probabilities(self, pixels: np.ndarray, batch_size: int) -> np.ndarray:
        padding = ((0, batch_size - len(pixels)), (0, 0), (0, 0), (0, 0))
        return np.asarray(self._forward(self.variables, np.pad(pixels, padding)))[: len(pixels)]

    @functools.cached_property
    def _forward(self) -> Any:
        def forward(variables: dict, pixels: jax.Array) -> jax.Array:
            images = evaluation_images(pixels, self.config.augment)
            logits = self.model.apply(variables, images, train=False)
            return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

        return jax.jit(forward)


def load(path: str | pathlib.Path, checkpoint: str | int = "last") -> Classifier:
    """Loads a trained network from its run folder, which is all it needs.

    Args:
      path: the run's workdir.
      checkpoint: "last", "best" (highest top-1 of its evaluations), or a saved step.

    Raises:
      CheckpointError: there is no such run or checkpoint, or it is not what was saved.
    """
    classifier, _ = load_state(path, checkpoint)
    return classifier


def load_state(
    path: str | pathlib.Path, checkpoint: str | int = "last"
) -> tuple[Classifier, TrainState]:
    """Loads a classifier and the whole training state behind it; raises as `load` does."""
    folder = pathlib.Path(path).expanduser().resolve()
    if not (folder / "checkpoints").is_dir():
        raise CheckpointError(f"{folder} is no run folder: it has no checkpoints/")
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        step = checkpoints.resolve(checkpoint)
        run = checkpoints.run(step)
        config, num_classes = freeze(run["config"]), int(run["num_classes"])
        model = build_model(config, num_classes)
        optimizer = make_optimizer(config, Plan.nominal(num_classes))
        state = checkpoints.restore(
            step, abstract_state(config, model, optimizer, sharding.make_mesh())
        ).state
    finally:
        checkpoints.close()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return Classifier(model, variables, tuple(run["class_names"]), config, step), state
