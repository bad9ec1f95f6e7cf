"""Factors for each parameter, from rules over its name or from its distance to the head."""

import re
from typing import Any

import jax
import optax

from flax_resnet.errors import ConfigError
from flax_resnet.models.network import Network, block_depths

Rules = tuple[tuple[str, float], ...]


def names(params: optax.Params) -> Any:
    """Return a tree of the parameters' names, such as layer1_0/conv1/kernel."""
    return jax.tree.map_with_path(lambda path, _: "/".join(part.key for part in path), params)


def factors(params: optax.Params, rules: Rules, key: str, otherwise: float = 1) -> Any:
    """Return a tree of numbers: the value of the first rule that matches each parameter's name, or `otherwise`.

    Raises:
      ConfigError: a rule is the first match of no parameter.
    """
    matched = [False] * len(rules)

    def factor(name: str) -> float:
        for number, (pattern, value) in enumerate(rules):
            if re.search(pattern, name):
                matched[number] = True
                return float(value)
        return float(otherwise)

    values = jax.tree.map(factor, names(params))
    for (pattern, value), is_matched in zip(rules, matched, strict=True):
        if not is_matched:
            some = ", ".join(sorted(jax.tree.leaves(names(params)))[:3])
            raise ConfigError(
                f"matches no parameter, or only those that earlier rules match; names look like {some}",
                key=key,
                value=(pattern, value),
                cure="list the names with python -m flax_resnet summary",
            )
    return values


def outside_head(params: optax.Params, head: str) -> Any:
    """Return a tree of bools: False for the parameters of the module `head`."""
    return jax.tree.map(lambda name: name.partition("/")[0] != head, names(params))


def block_factors(params: optax.Params, layer_decay: float, model: Network) -> Any:
    """Return a tree of learning rate factors, ``layer_decay^distance``; distances are counted from the head:

        module                                         distance
        the head                                       0
        the last block, and normalisation after it     1
        the block before the last                      2
        the stem                                       distance of the first block + 1

    Raises:
      ConfigError: the network has no blocks.

    Source: Clark et al. 2020, "ELECTRA", appendix A; for images, Bao et al. 2022, "BEiT", appendix.
    """
    if layer_decay == 1:
        return jax.tree.map(lambda leaf: 1.0, params)
    depths = block_depths(model.stages())
    if not depths:
        raise ConfigError(
            key="optimizer.layer_decay",
            value=layer_decay,
            allowed="1 for a network without residual blocks",
        )
    most = max(depths.values())

    def factor(name: str) -> float:
        module = name.partition("/")[0]
        return 1.0 if module == model.head else layer_decay ** (most + 1 - depths.get(module, 0))

    return jax.tree.map(factor, names(params))
