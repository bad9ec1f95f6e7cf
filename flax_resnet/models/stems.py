"""Stems: the convolutions before the first stage, and the operation that halves the map after them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flax_resnet.models.blocks import Parts
from flax_resnet.models.layers.pooling import average_pool
from flax_resnet.ops.max_pool import max_pool


class Stem(NamedTuple):
    """Convolutions as (kernel size, stride, share of the stem's width), and the pool after them."""

    layers: tuple[tuple[int, int, float], ...]
    pool: str


STEMS = {
    "imagenet": Stem(((7, 2, 1.0),), "max"),
    "deep": Stem(((3, 2, 0.5), (3, 1, 0.5), (3, 1, 1.0)), "max"),
    "tiered": Stem(((3, 2, 0.375), (3, 1, 0.5), (3, 1, 1.0)), "max"),
    "cifar": Stem(((3, 1, 1.0),), "none"),
}
STEM_POOLS = ("max", "max_zero", "conv", "none")


def apply_stem(net: Any, parts: Parts, x: jax.Array, train: bool) -> jax.Array:
    """Apply the stem's one or three convolutions; call it within the network's `__call__`.

    In a pre-activation network, the first block applies the last normalisation.
    """
    layers = STEMS[net.stem].layers
    for position, (size, stride, share) in enumerate(layers):
        last = position == len(layers) - 1
        # torch's indices include the norms and activations between convolutions: conv1.0, conv1.3, conv1.6.
        name = "conv1" if len(layers) == 1 else f"conv1_{3 * position}"
        x = parts.conv(int(net.stem_channels * share), size, stride=stride, name=name)(x)
        if not last:
            x = parts.norm(name=f"conv1_{3 * position + 1}")(x, train=train)
        elif not net.is_preact:
            x = parts.norm(name="bn1")(x, train=train)
    return x


def pool_stem(net: Any, parts: Parts, x: jax.Array, train: bool) -> jax.Array:
    """Halve the map after the stem by the operation `net.pool`; call it within the network's `__call__`."""
    filtered = parts.anti_alias
    if net.pool == "conv":
        x = parts.conv(net.stem_channels, 3, stride=1 if filtered else 2, name="maxpool_0")(x)
        x = parts.anti_alias(x, stride=2) if filtered else x
        return parts.norm(name="maxpool_2" if filtered else "maxpool_1")(x, train=train)
    if net.pool == "none":
        return x
    if net.anti_alias == "average":
        return average_pool(x, size=2, stride=2)
    if filtered:
        return parts.anti_alias(max_pool(x, size=3, stride=1, padding=1), stride=2)
    if net.pool == "max_zero":
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return max_pool(x, size=3, stride=2)
    return max_pool(x, size=3, stride=2, padding=1)
