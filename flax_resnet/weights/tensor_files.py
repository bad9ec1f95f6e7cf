"""Read and write files of tensors as NumPy arrays. No code in a file is ever run."""

import os
import pathlib
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flax_resnet.errors import OutputError, WeightsError, one_line
from flax_resnet.weights.checkpoint_contents import (
    StoredArray,
    harmless_globals,
    network_tensors,
    variables_as_tensors,
)
from flax_resnet.weights.npz_files import read_npz

# Below it, torch.load(weights_only=True) could run code of a file (CVE-2025-32434, CVE-2026-24747).
TORCH = (2, 10)
TORCH_CURE = "pip install 'flax_resnet[torch]'"
# The first pickle of a file that torch.save wrote without a zip archive: a number, after the protocol.
TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
FORMATS = "a file of safetensors, torch.save, numpy.savez or flax.serialization"
# Files that stand where weights are expected: how they begin, and what they are.
STRANGERS = (
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself", "git lfs pull"),
    (b"\x1f\x8b", "is compressed with gzip", "decompress it"),
    (b"\x89HDF", "is an HDF5 file, as of Keras", ""),
    (b"\x93NUMPY", "holds a single array without a name", ""),
    (b"<", "is a page of HTML or XML, not the file itself", "download the file"),
)
# Dtypes by their name in safetensors. NumPy has no bfloat16, so BF16 is read as uint16 and converted.
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_tensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Read the tensors of a network from a file; the content, not the suffix, decides on the format.

    Args:
      path: a file of safetensors; of torch.save (torch must be installed); of numpy.savez; or of
        flax.serialization, with the variables of a network of this package. From what a training script saved, the
        averaged weights are read if there are any, else the network's (checkpoint_contents.py).

    Returns:
      Name -> array, which may be read-only. float64 stays float64; other floating dtypes become float32. All values
      are finite.

    Raises:
      WeightsError: the file is missing, corrupted or of another format; it holds values that are not numbers or not
        finite; or torch is needed, but is not installed, too old or cannot be imported.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(
            "is a folder, not a file of weights" if path.is_dir() else "no such file of weights",
            key=path,
        )
    try:
        tensors = _reader(path)(path)
    except OSError as error:
        raise WeightsError(f"cannot be read: {one_line(error)}", key=path) from error
    if not tensors:
        raise WeightsError("holds no tensors", key=path)
    return {name: _number(path, name, array) for name, array in tensors.items()}


def write_safetensors(
    path: str | pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file atomically; an existing file is replaced.

    Args:
      path: ends in ``.safetensors``; its folder must exist.
      tensors: name -> array.
      metadata: text stored in the file's header.

    Raises:
      WeightsError: `path` does not end in ``.safetensors``.
      OutputError: the file cannot be written; an existing file is unchanged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = pathlib.Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise WeightsError(key=path, allowed="a file that ends in .safetensors")
    # np.ascontiguousarray would turn scalars into vectors.
    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.touch()
        # safetensors 0.8 would write a file that only its owner can read.
        mode = partial.stat().st_mode
        save_file(tensors, partial, dict(metadata) if metadata else None)
        partial.chmod(mode)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot be written: {one_line(error)}", key=path) from error
    finally:
        partial.unlink(missing_ok=True)


def _reader(path: pathlib.Path) -> Callable[[pathlib.Path], dict[str, np.ndarray]]:
    """Return the function that reads a file, by how the file begins."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise WeightsError("is empty", key=path)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_reader(path)
    if head[0] == 0x80 and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):  # a pickle
        if TORCH_MAGIC in head[:32]:
            return _from_torch_file
        raise WeightsError(
            "is a pickle, but not of torch.save (none of its code was run)",
            key=path,
            cure="save model.state_dict() with torch.save or safetensors",
        )
    for beginning, problem, cure in STRANGERS:
        if head.lstrip().startswith(beginning):
            raise WeightsError(problem, key=path, allowed=FORMATS, cure=cure)
    if head[257:262] == b"ustar":
        raise WeightsError("is a tar archive", key=path, allowed=FORMATS, cure="extract it")
    # The length of the header, and the header, which is JSON. The format allows at most 100 MB.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000:
        return _from_safetensors
    if head[0] in (0xDE, 0xDF) or 0x80 < head[0] < 0x90:  # a map
        return _from_msgpack
    raise WeightsError("is no file of weights, or is corrupted", key=path, allowed=FORMATS)


def _zip_reader(path: pathlib.Path) -> Callable[[pathlib.Path], dict[str, np.ndarray]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
            # torch does not compare the checksums. All are 0 if it was told to write none.
            checked = "data.pkl" in names and any(info.CRC for info in archive.infolist())
            if checked and (damaged := archive.testzip()):
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError) as error:
        raise _damaged(
            path, "a whole zip archive, as of torch.save or numpy.savez", error
        ) from error
    if "data.pkl" not in names:
        return _from_npz
    if "constants.pkl" in names:
        raise WeightsError(
            "is a program of TorchScript", key=path, cure="save model.state_dict() instead"
        )
    return _from_torch_file


def _from_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise _damaged(path, "a safetensors file", error) from error
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in DTYPES:
            raise WeightsError(
                f"tensor {name} is of dtype {entry['dtype']}", key=path, allowed=DTYPES
            )
        try:
            array = np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        except ValueError as error:  # an empty array with a huge side
            raise _damaged(path, "a safetensors file", error) from error
        if entry["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array
    return network_tensors(path, tensors) if tensors else {}


def _torch(path: pathlib.Path) -> Any:
    """Import torch, of a version whose `torch.load(weights_only=True)` is safe."""
    try:
        import torch
    except Exception as error:  # a broken library raises OSError, for instance
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            raise WeightsError(
                "is a file of torch, which is not installed", key=path, cure=TORCH_CURE
            ) from error
        raise WeightsError(
            f"needs torch, which is installed but cannot be imported: {one_line(error)}",
            key=path,
            cure="repair the installation of torch",
        ) from error
    version = str(getattr(torch, "__version__", ""))
    match = re.match(r"(\d+)\.(\d+)", version)
    if not match or (int(match[1]), int(match[2])) < TORCH:
        least = ".".join(map(str, TORCH))
        raise WeightsError(
            f"needs torch {least} or later, which runs no code of a file; {version or 'unknown'} is installed",
            key=path,
            cure=f"pip install 'torch>={least}'",
        )
    return torch


def _from_torch_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    torch = _torch(path)
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # long warnings that repeat the error
            torch.serialization.safe_globals(harmless_globals()),
        ):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|(array of dtype \S+)", str(error))
        what = f" ({found[1] or found[2]})" if found else ""
        raise WeightsError(
            f"holds more than tensors and plain values{what}; none of its code was run",
            key=path,
            cure="save model.state_dict() instead",
        ) from error
    except Exception as error:  # torch raises many types for corrupted files
        raise _damaged(path, "a torch file", error) from error
    tensors = {}
    for name, value in network_tensors(path, loaded).items():
        value = value.array if isinstance(value, StoredArray) else value
        try:
            if isinstance(value, torch.Tensor):
                if value.is_floating_point() and value.dtype != torch.float64:
                    value = value.float()
                value = value.detach().numpy()
            tensors[name] = value
        except (TypeError, RuntimeError) as error:  # sparse or quantized tensors
            raise WeightsError(
                f"tensor {name} cannot be read: {one_line(error)}", key=path
            ) from error
    return tensors


def _from_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        tensors = read_npz(path)
    except (ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, "an npz file of numbers", error) from error
    return network_tensors(path, tensors) if tensors else {}


def _from_msgpack(path: pathlib.Path) -> dict[str, np.ndarray]:
    from flax.serialization import msgpack_restore

    try:
        tree = msgpack_restore(path.read_bytes())
    except OSError:
        raise
    except Exception as error:  # msgpack and flax raise many types for corrupted files
        raise _damaged(path, "a msgpack file of flax", error) from error
    return variables_as_tensors(path, tree)


def _damaged(path: pathlib.Path, kind: str, error: Exception) -> WeightsError:
    return WeightsError(f"is corrupted, or is not {kind}: {one_line(error)}", key=path)


def _number(path: pathlib.Path, name: str, array: np.ndarray) -> np.ndarray:
    """Return a floating array as float32 or float64, and an integer or boolean array unchanged."""
    if isinstance(array, np.ndarray) and array.dtype.name == "bfloat16":  # in files of flax
        array = array.astype(np.float32)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        kind = getattr(array, "dtype", type(array).__name__)
        raise WeightsError(f"tensor {name} is of dtype {kind}, not of numbers", key=path)
    if array.dtype.kind != "f":
        return array
    if not np.isfinite(array).all():
        raise WeightsError(f"tensor {name} holds a number that is not finite", key=path)
    return array.astype(np.float32 if array.dtype.itemsize < 8 else np.float64, copy=False)
