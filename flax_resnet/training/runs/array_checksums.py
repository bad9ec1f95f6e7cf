"""The arrays of a state: their shapes and checksums, by path, and the checks against those of a checkpoint."""

import math
import pathlib
import types
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from flax_resnet.errors import BrokenCheckpointError, DivergedError, WorkdirError
from flax_resnet.training.runs.split_crc import joined


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

    The result does not depend on how an array is split over devices. Each process reads the parts on its own
    devices. All processes must call this together, and all get the same result or the same error.

    Raises:
      DivergedError: `must_be_finite` is set, and a leaf is not finite.
    """
    leaves = {_name(path): _read(leaf) for path, leaf in jax.tree.leaves_with_path(state)}
    found = np.concatenate([np.zeros(0, np.uint32), *(leaf.findings for leaf in leaves.values())])
    if jax.process_count() > 1:  # what a process does not know is 0
        found = np.bitwise_or.reduce(multihost_utils.process_allgather(found))
    sums, first = {}, 0
    for name, leaf in leaves.items():
        is_broken, *crcs = found[first : first + len(leaf.findings)]
        first += len(leaf.findings)
        if must_be_finite and is_broken:
            raise DivergedError("is not finite", key=name)
        sums[name] = joined(np.array(crcs), leaf.length)
    return sums


class _Leaf(NamedTuple):
    """What the devices of this process hold of an array, whose bytes are cut into runs of equal length.

    Attributes:
      length: bytes of a run.
      findings: uint32 [1 + runs]: 1 if a part is not finite, and the CRC-32 of each run in the order of the bytes;
        0 for runs of other processes.
    """

    length: int
    findings: np.ndarray


def _read(leaf: Any) -> _Leaf:
    """Read the parts of an array on the devices of this process.

    If an array [2, 6] is split along axis 1 over devices A and B, each part has two runs of three elements:

        A A A B B B
        A A A B B B
    """
    parts: tuple[Any, ...]
    if isinstance(leaf, jax.Array):
        # Of replicas, one is read.
        parts = tuple({str(shard.index): shard for shard in leaf.addressable_shards}.values())
        width = leaf.sharding.shard_shape(leaf.shape)
    else:
        parts = (types.SimpleNamespace(index=(), data=leaf),)
        width = np.shape(leaf)
    split = [axis for axis, size in enumerate(width) if size != leaf.shape[axis]]
    last = split[-1] if split else 0  # a run begins at this axis
    shape = (*leaf.shape[:last], leaf.shape[last] // width[last]) if split else ()
    crcs, length = np.zeros(shape, np.uint32), math.prod(width[last:]) * leaf.dtype.itemsize
    is_finite = True
    for part in parts:
        array = np.ascontiguousarray(part.data)
        is_finite &= bool(np.isfinite(array).all())
        runs = array.reshape(-1).view(np.uint8).reshape(math.prod(width[:last]), length)
        place = (*part.index[:last], (part.index[last].start or 0) // width[last]) if split else ()
        crcs[place] = np.array([zlib.crc32(run.data) for run in runs], np.uint32).reshape(
            width[:last]
        )
    return _Leaf(length, np.array([not is_finite, *crcs.flat], np.uint32))


def shapes(state: Any) -> dict[str, list[int]]:
    """Return {path: shape} of all leaves."""
    return {_name(path): list(leaf.shape) for path, leaf in jax.tree.leaves_with_path(state)}


def _name(path: tuple) -> str:
    return "/".join(str(getattr(p, "name", getattr(p, "key", getattr(p, "idx", p)))) for p in path)
