"""Random access to record files: array_record directly, tfrecord through an index of offsets.

On one core, with records of 61 KB in the page cache, array_record takes 22 us per record and tfrecord 5 us.
"""

import bisect
import itertools
import logging
import mmap
import os
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from flax_resnet.data.array_cache import file_identity, load_array, store_array
from flax_resnet.data.cache_folder import cache_folder
from flax_resnet.data.fingerprint import (
    Fingerprint,
    array_checksum,
    file_sizes,
    texts_checksum,
)
from flax_resnet.errors import DataError, one_line

log = logging.getLogger("flax_resnet")

# A record in a tfrecord file: length uint64, checksum of the length uint32, the bytes, checksum of the bytes
# uint32.
HEADER, FOOTER = 12, 4


class Shard(Protocol):
    """A file of records."""

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Return the records at these positions of the file."""


class ArrayRecordShard:
    """An array_record file."""

    def __init__(self, path: str, count: int):
        from array_record.python.array_record_module import ArrayRecordReader

        self._path = path
        _check_exists(path)  # the reader would report a missing file as a file without records
        try:
            # No read-ahead: random access discards it.
            self._reader = ArrayRecordReader(path, "readahead_buffer_size:0")
            records = self._reader.num_records()
        except (RuntimeError, ValueError, OSError) as error:
            raise DataError(f"cannot be read: {one_line(error)}", key=path) from error
        _check_count(path, records, count)

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Return the records at these positions of the file. Raise DataError if they are corrupted."""
        try:
            return self._reader.read(indices)
        except (RuntimeError, IndexError) as error:
            raise DataError(f"is corrupted: {one_line(error)}", key=self._path) from error


class TfrecordShard:
    """A tfrecord file, with the offset and length of each record.

    The checksums of records are not verified. A corrupted record raises an error when it is parsed or decoded.
    """

    def __init__(self, path: str, count: int):
        _check_exists(path)
        try:
            self._file = os.open(path, os.O_RDONLY)
            self._offsets, self._lengths = _cached_index(path).T.tolist()
        except OSError as error:
            raise DataError(f"cannot be read: {one_line(error)}", key=path) from error
        _check_count(path, len(self._offsets), count)

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Return the records at these positions of the file."""
        return [os.pread(self._file, self._lengths[i], self._offsets[i]) for i in indices]

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


def _check_exists(path: str) -> None:
    if not os.path.exists(path):
        raise DataError("is missing", key=path)


def _check_count(path: str, records: int, count: int) -> None:
    if records != count:
        raise DataError(f"holds {records} records, but its dataset says {count}", key=path)


FORMATS: dict[str, Callable[[str, int], Shard]] = {
    "array_record": ArrayRecordShard,
    "tfrecord": TfrecordShard,
}


class ShardedRecords:
    """The records of a split in order, over all its files; each file is opened at its first read.

    Attributes:
      parts: as the argument.

    Args:
      kind: a key of `FORMATS`.
      parts: for each file: path, first record used, number of records used, and number of records in the file.
    """

    def __init__(self, kind: str, parts: Sequence[tuple[str, int, int, int]]):
        _allow_open_files(len(parts))
        self._kind, self.parts = kind, parts
        self._starts = [0, *itertools.accumulate(take for _, _, take, _ in parts)]
        self._shards: dict[int, Shard] = {}
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, indices: Sequence[int] | np.ndarray) -> list[bytes]:
        """Return the records at these indices, in this order. Raise DataError for a corrupted file."""
        records: list[bytes] = []
        for index in map(int, indices):
            number = bisect.bisect_right(self._starts, index) - 1
            skip = self.parts[number][1]
            records += self._shard(number).read([index - self._starts[number] + skip])
        return records

    def read_file(self, path: str, positions: Sequence[int]) -> list[bytes]:
        """Read the records at these positions of one of the files. Raise DataError for a corrupted file."""
        return self._shard([part[0] for part in self.parts].index(path)).read(positions)

    def shared(self, other: "ShardedRecords") -> int:
        """Return the number of records that are also in another split."""
        used = [
            [(path, range(skip, skip + take)) for path, skip, take, _ in x.parts]
            for x in (self, other)
        ]
        return sum(
            len(range(max(mine.start, theirs.start), min(mine.stop, theirs.stop)))
            for (path, mine), (same, theirs) in itertools.product(*used)
            if path == same
        )

    def fingerprint(self) -> Fingerprint:
        """Return the fingerprint of the files: their records, which no format changes, and their sizes in this one.

        Raises DataError if the file system does not answer.
        """
        records = [
            f"{os.path.basename(path).replace(self._kind, '')} {skip} {take} {count}"
            for path, skip, take, count in self.parts
        ]
        sizes = file_sizes("", [path for path, *_ in self.parts])
        return {
            "records": texts_checksum(records),
            f"sizes of {self._kind} files": array_checksum(sizes),
        }

    def _shard(self, number: int) -> Shard:
        shard = self._shards.get(number)
        if shard is None:
            with self._opening:
                if number not in self._shards:
                    path, _, _, count = self.parts[number]
                    self._shards[number] = FORMATS[self._kind](path, count)
                shard = self._shards[number]
        return shard


def offsets(path: str | os.PathLike) -> np.ndarray:
    """Scan a tfrecord file for the offset and length of each record: int64 [n, 2].

    Raises:
      DataError: the file does not end with its last record.
    """
    size = os.path.getsize(path)
    if not size:
        return np.zeros((0, 2), np.int64)
    records, position = [], 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        while position + HEADER <= size:
            (length,) = struct.unpack_from("<Q", view, position)
            records.append((position + HEADER, length))
            position += HEADER + length + FOOTER
    if position != size:
        raise DataError(
            f"is corrupted: record {len(records) - 1} does not end within the file", key=path
        )
    return np.array(records, np.int64)


def _cached_index(path: str) -> np.ndarray:
    """Read the cached index of a tfrecord file, or build and store it. A changed file gets a new index."""
    identity = f"offsets {file_identity(path, os.path.realpath(path))}"
    folder = cache_folder("offsets")
    index = load_array(folder, identity)
    if index is None:
        index = offsets(path)
        try:
            store_array(folder, identity, index)
        except OSError as error:  # no home folder or no space; the next run builds the index again
            log.warning("the index of %s cannot be stored: %s", path, one_line(error))
    return index


def _allow_open_files(count: int) -> None:
    """Raise the soft limit of open files, which is often 1,024: ImageNet's training split has 1,024 files."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * count + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
