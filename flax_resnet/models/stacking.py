"""Convert variables between networks with and without `scan_blocks`, in both directions, without loss.

Without `scan_blocks`, the blocks of a stage are ``layer3_0``, ``layer3_1``, .... With it, all blocks but the first
are ``layer3_rest``, with leaves stacked on a new first axis in the order of the blocks.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def unstack_blocks(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Split stacked blocks in variables ({"params": ..., ...}) of a network with `scan_blocks`."""
    return {kind: _unrolled(tree) for kind, tree in variables.items()}


def stack_blocks(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Stack the blocks in variables of a network without `scan_blocks`; the inverse of `unstack_blocks`."""
    return {kind: _scanned(tree) for kind, tree in variables.items()}


def _unrolled(tree: Mapping[str, Any]) -> dict[str, Any]:
    result = {}
    for name, subtree in tree.items():
        if not (match := re.fullmatch(r"(layer\d+)_rest", name)):
            result[name] = subtree
            continue
        for index in range(jax.tree.leaves(subtree)[0].shape[0]):
            result[f"{match[1]}_{index + 1}"] = jax.tree.map(lambda x, i=index: x[i], subtree)
    return result


def _scanned(tree: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    stages: dict[str, list[tuple[int, Any]]] = {}
    for name, subtree in tree.items():
        match = re.fullmatch(r"(layer\d+)_(\d+)", name)
        if match and int(match[2]):
            stages.setdefault(f"{match[1]}_rest", []).append((int(match[2]), subtree))
        else:
            result[name] = subtree
    for name, blocks in stages.items():
        ordered = [subtree for _, subtree in sorted(blocks, key=lambda block: block[0])]
        result[name] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ordered)
    return result
