"""Fingerprints of datasets: a resumed run checks by them that its training split holds the same examples.

A fingerprint is a dict of whole numbers, one per aspect of the examples: names, labels, sizes. It covers all
examples in their order, and neither the time of a change nor the place of the dataset.
"""

import concurrent.futures
import os
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from flax_resnet.data.records import Relabelled, Source
from flax_resnet.errors import DataError, one_line

Fingerprint = dict[str, int]
# Files per task, and tasks at a time: on a network, each size takes a message of its own.
CHUNK, THREADS = 1000, 16


@runtime_checkable
class Fingerprinted(Protocol):
    """A source that knows more of its examples than their names."""

    def fingerprint(self) -> Fingerprint:
        """Return the fingerprint of the examples. Raises DataError if they cannot be read now."""


class Change(NamedTuple):
    """A difference of two fingerprints: an aspect, and the only example that changed if it is known."""

    aspect: str
    example: int | None


def fingerprint_of(source: Source) -> Fingerprint:
    """Return the fingerprint of a split: its own, or else one of the names that `describe` returns.

    Raises:
      DataError: the examples cannot be read now.
    """
    while isinstance(source, Relabelled):
        source = source.source
    if isinstance(source, Fingerprinted):
        return source.fingerprint()
    return {"names": texts_checksum(source.describe(index) for index in range(len(source)))}


def change(was: Fingerprint, now: Fingerprint) -> Change | None:
    """Return the first aspect that both fingerprints have and that differs, or None if there is none."""
    for aspect, value in was.items():
        if aspect in now and now[aspect] != value:
            return Change(aspect, _resized(was, now) if aspect == "sizes" else None)
    return None


def texts_checksum(texts: Iterable[str]) -> int:
    """Return the CRC-32 of texts in their order."""
    return zlib.crc32("\0".join(texts).encode(errors="surrogateescape"))


def array_checksum(array: np.ndarray) -> int:
    """Return the CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def sizes_fingerprint(sizes: np.ndarray) -> Fingerprint:
    """Return the aspects of sizes in bytes, int64 [n]: their checksum, and moments that tell which one changed.

    The moments are sum(s_i), sum(i s_i) and sum(i^2 s_i), modulo 2^64. If only s_j changes, by d, they change by d,
    j d and j^2 d. They come after `sizes`, so a change of sizes is reported as such.
    """
    index, wide = np.arange(len(sizes), dtype=np.uint64), sizes.astype(np.uint64)
    moments = {f"moment{k}": int((index**k * wide).sum(dtype=np.uint64)) for k in range(3)}
    return {"sizes": array_checksum(sizes.astype("<i8")), **moments}


def _resized(was: Fingerprint, now: Fingerprint) -> int | None:
    """Return the index of the only example whose size changed, or None if there are several."""
    by, first, second = (_signed(now[f"moment{k}"] - was[f"moment{k}"]) for k in range(3))
    if not by or first % by:
        return None
    index = first // by
    return index if index >= 0 and _signed(index * index * by - second) == 0 else None


def _signed(number: int) -> int:
    """Return the number from -2^63 to 2^63 - 1 that equals `number` modulo 2^64."""
    return (number + 2**63) % 2**64 - 2**63


def file_sizes(root: str, files: Sequence[str]) -> np.ndarray:
    """Return the size of each file in bytes, int64 [n]; -1 for a file that does not exist or may not be read.

    Args:
      root: the folder of the dataset.
      files: paths relative to it.

    Raises:
      DataError: the file system does not answer.
    """
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
        sizes = list(pool.map(lambda chunk: [_size(os.path.join(root, f)) for f in chunk], chunks))
    return np.array([size for chunk in sizes for size in chunk], np.int64)


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return -1
    except OSError as error:
        raise DataError(f"cannot be read now: {one_line(error)}", key=file) from error
