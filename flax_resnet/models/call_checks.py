"""The checks that every network makes when it is called: the images, and the names of features."""

from collections.abc import Sequence
from typing import Any

import jax

from flax_resnet.errors import ConfigError


def check_call(net: Any, images: jax.Array, features: Sequence[str]) -> None:
    """Raise ConfigError if the images do not fit the network or a feature does not exist.

    Args:
      net: a network with `in_channels` and `feature_info()`.
      images: [N, H, W, C].
      features: names of features.
    """
    if images.ndim != 4 or images.shape[-1] != net.in_channels:
        raise ConfigError(
            key="images",
            value=images.shape,
            allowed=f"of shape [N, H, W, {net.in_channels}] (model.in_channels={net.in_channels})",
        )
    for name in features:
        if name not in net.feature_info():
            raise ConfigError("unknown", key="features", value=name, allowed=net.feature_info())
