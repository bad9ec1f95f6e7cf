"""Read npz files of anyone: no pickles, and no more memory than the file accounts for."""

import pathlib
import zipfile
from typing import IO

import numpy as np

# A file may hold arrays of this many times its size: deflated weights have nearly their full size, zeros 1/1000.
MOST_RATIO = 100
ALWAYS_ALLOWED = 2**26  # bytes


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file of numpy.savez.

    Raises:
      ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error: the file is corrupted, holds
        something else than arrays of plain values, or is a decompression bomb.
      OSError: the file cannot be read.
    """
    most = max(ALWAYS_ALLOWED, MOST_RATIO * path.stat().st_size)
    with zipfile.ZipFile(path) as archive:
        if (size := sum(info.file_size for info in archive.infolist())) > most:
            raise ValueError(f"its {path.stat().st_size} bytes would become {size}")
        return {
            info.filename.removesuffix(".npy"): _array(archive, info) for info in archive.infolist()
        }


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Read an array, after a check that its header fits the size of its data."""
    with archive.open(info) as member:
        shape, fortran, dtype = _header(member, info.filename)
        if dtype.hasobject or dtype.itemsize == 0:
            raise ValueError(f"{info.filename} is of dtype {dtype}")
        counts = [int(count) for count in shape]
        size = dtype.itemsize
        for count in counts:  # as Python numbers, which do not overflow
            size *= count
        left = info.file_size - member.tell()
        if min(counts, default=0) < 0 or size != left:
            raise ValueError(f"{info.filename} has shape {shape} of {dtype}, but {left} bytes")
        data = member.read(size)
    if len(data) != size:
        raise EOFError(f"{info.filename} ends early")
    array = np.frombuffer(data, dtype).reshape(counts[::-1] if fortran else counts)
    return array.T if fortran else array


def _header(member: IO[bytes], name: str) -> tuple[tuple, bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(member)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(member)
    except Exception as error:  # NumPy parses it as Python, which raises many types
        raise ValueError(f"the header of {name} is malformed") from error
    raise ValueError(f"{name} is of version {version} of the format")
