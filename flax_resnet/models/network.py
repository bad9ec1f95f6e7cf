"""The interface that training needs from a network: its head, its blocks, and its initialization from data."""

from typing import Any, Protocol

import jax
import numpy as np

# The blocks of each stage, from the stem to the head. A block is the names of its modules at the top of `params`.
Stages = tuple[tuple[tuple[str, ...], ...], ...]


class Network(Protocol):
    """The interface of a linen module that `create_model` returns.

    Attributes:
      num_classes: size of the logits; 0 for a network without a head.
      in_channels: channels of the images.
      dtype: compute dtype.
      head: name of the last linear layer in `params`.
      initializes_from_data: whether a layer is initialized from images before the first step. If so, the network is
        a `DataInitializedNetwork`.
    """

    num_classes: int
    in_channels: int
    dtype: Any
    head: str
    initializes_from_data: bool

    @property
    def measures_batches(self) -> bool:
        """Whether training normalises by the statistics of the batch, and keeps their running mean."""

    @property
    def image_size(self) -> int:
        """The height and width of the images that the network is made for, in pixels."""

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """Return fresh variables, like `linen.Module.init`."""

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs, like `linen.Module.apply`."""

    def clone(self, **fields: Any) -> Any:
        """Return a copy of the network with other fields, like `linen.Module.clone`."""

    def stages(self) -> Stages:
        """Return the module names of every block by stage, in forward order, without stem and head."""

    def feature_info(self) -> dict[str, tuple[int, int]]:
        """Return the stride and the channels of every named feature."""


class DataInitializedNetwork(Network, Protocol):
    """A network with a layer that is initialized from training images."""

    def data_statistics(self, images: jax.Array) -> jax.Array:
        """Compute the statistics for the layer from normalised images [N, H, W, C]; runs inside jit."""

    def initialized(self, batch_stats: Any, statistics: np.ndarray) -> dict[str, Any]:
        """Return `batch_stats` with values for the layer, computed from the statistics; runs on the host."""


def block_depths(stages: Stages) -> dict[str, int]:
    """Return {module name: number of its block, counted from 1}, without the modules of stem and head."""
    blocks = [block for stage in stages for block in stage]
    return {name: depth for depth, block in enumerate(blocks, 1) for name in block}
