"""The arrays of a state: their shapes and checksums, by path, and the checks against those of a checkpoint."""

import pathlib
import zlib
from typing import Any

import jax
import numpy as np

from flax_resnet.errors import BrokenCheckpointError, DivergedError, WorkdirError


def check_shapes(
    path: pathlib.Path, stored: dict[str, list[int]], wanted: dict[str, list[int]]
) -> None:
    """Raise WorkdirError if arrays have other shapes. Such a checkpoint is intact, so it is not moved."""
    if stored != wanted:
        odd = sorted(k for k in wanted.keys() | stored if stored.get(k) != wanted.get(k))
        raise WorkdirError(
            f"holds another network: {odd[0]} is {stored.get(odd[0])}, not {wanted.get(odd[0])}",
            key=path,
            cure="name another workdir",
        )


def check_checksums(path: pathlib.Path, stored: dict[str, int], found: dict[str, int]) -> None:
    """Raise BrokenCheckpointError if the checksums of arrays differ."""
    wrong = sorted(name for name in found.keys() | stored if found.get(name) != stored.get(name))
    if wrong:
        raise BrokenCheckpointError(
            f"is not what was saved: {len(wrong)} of {len(found)} arrays differ, such as {wrong[0]}",
            key=path,
        )


def checksums(state: Any, *, must_be_finite: bool = False) -> dict[str, int]:
    """Return {path: CRC-32 of the leaf's bytes}; a path looks like ``params/conv1/kernel``.

    Raises:
      DivergedError: `must_be_finite` is set, and a leaf is not finite.
    """
    sums = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        # Arrays are replicated over the mesh, so each device holds the whole array.
        array = np.ascontiguousarray(
            leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf
        )
        name = _name(path)
        if must_be_finite and not np.isfinite(array).all():
            raise DivergedError("is not finite", key=name)
        sums[name] = zlib.crc32(array.tobytes())
    return sums


def shapes(state: Any) -> dict[str, list[int]]:
    """Return {path: shape} of all leaves."""
    return {_name(path): list(leaf.shape) for path, leaf in jax.tree.leaves_with_path(state)}


def _name(path: tuple) -> str:
    return "/".join(str(getattr(p, "name", getattr(p, "key", getattr(p, "idx", p)))) for p in path)
