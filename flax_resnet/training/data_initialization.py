"""Initialization of a network from training images, before the first step."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from flax_resnet.augment import evaluation_images
from flax_resnet.config import Config
from flax_resnet.models.network import DataInitializedNetwork
from flax_resnet.training import sharding
from flax_resnet.training.input.feeds import Feed
from flax_resnet.training.state import TrainState


def initialize_from_data(
    state: TrainState, model: DataInitializedNetwork, feed: Feed, config: Config, mesh: Mesh
) -> TrainState:
    """Return the state with the network initialized from the first training batch, without augmentation.

    Args:
      state: the freshly initialised state.
      model: the network.
      feed: the feed of the training split.
      config: the configuration.
      mesh: the devices.
    """

    def statistics(data: Any, call: Any) -> jax.Array:
        if config.train.steps_per_call > 1:
            call = jax.tree.map(lambda leaf: leaf[0], call)
        images = feed.training_batch(data, call)["image"]
        return model.data_statistics(evaluation_images(images, config.augment))

    compiled = jax.jit(statistics, out_shardings=sharding.replicated(mesh))
    measured = np.asarray(compiled(feed.data, next(iter(feed.training(0, 1)))))

    def initialized(batch_stats: Any) -> Any:
        new = model.initialized(jax.device_get(batch_stats), measured)
        new = multihost_utils.broadcast_one_to_all(new)  # rounding may differ between hosts
        return sharding.replicate(new, mesh)

    ema = state.ema
    if ema:
        ema = {**ema, "batch_stats": initialized(ema["batch_stats"])}
    return dataclasses.replace(state, batch_stats=initialized(state.batch_stats), ema=ema)
