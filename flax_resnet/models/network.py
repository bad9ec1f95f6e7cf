"""What training asks of a network beside its outputs: its head, its blocks, and whether it must see data first."""

from typing import Any, Protocol

import jax
import numpy as np

# Stages of blocks, each block the names of its modules at the top of `params`, from the stem to the head.
Stages = tuple[tuple[tuple[str, ...], ...], ...]


class Network(Protocol):
    """A linen module of `create_model`.

    Attributes:
      num_classes: size of the logits; 0 for a network without a head.
      in_channels: of the images.
      dtype: compute dtype.
      head: name of the last linear layer in `params`.
      initializes_from_data: whether it must see images before the first step: it is then a
        `DataInitializedNetwork`.
    """

    num_classes: int
    in_channels: int
    dtype: Any
    head: str
    initializes_from_data: bool

    def stages(self) -> Stages:
        """Return the modules of every block by stage, in forward order; stem and head are in none."""

    def feature_info(self) -> dict[str, tuple[int, int]]:
        """Return stride and channels of every named feature."""


class DataInitializedNetwork(Network, Protocol):
    """A network with a layer that is made of the training images."""

    def data_statistics(self, images: jax.Array) -> jax.Array:
        """Return what the layer is made of, of normalised images [N, H, W, C]; traced."""

    def initialized(self, batch_stats: Any, statistics: np.ndarray) -> dict[str, Any]:
        """Return `batch_stats` with the layer made of the statistics; on the host."""


def block_depths(stages: Stages) -> dict[str, int]:
    """Return the number of blocks up to each module's own, from 1; modules of the stem are not in it."""
    blocks = [block for stage in stages for block in stage]
    return {name: depth for depth, block in enumerate(blocks, 1) for name in block}
