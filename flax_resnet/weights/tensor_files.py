"""Read and write files of tensors as NumPy arrays. No code in a file is ever run."""

import os
import pathlib
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flax_resnet.errors import OutputError, WeightsError, one_line

# Keys under which training scripts store a model's tensors; averaged weights come first, as in timm.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
# Prefixes that DataParallel, weight averaging and torch.compile add to every name.
PREFIXES = ("module.", "_orig_mod.")
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
    """Read all tensors of a file; the suffix selects the format.

    Args:
      path: ``.safetensors``; ``.pth``, ``.pt`` or ``.bin`` (written by torch, which must be installed); or
        ``.npz``. From a torch training checkpoint, the averaged weights are read if there are any, else the
        model's. A prefix ``module.`` or ``_orig_mod.`` that all names share is removed.

    Returns:
      Name -> array, which may be read-only. float64 stays float64; other floating dtypes become float32. All values
      are finite.

    Raises:
      WeightsError: the file is missing, corrupted or of another format; it holds values that are not numbers or not
        finite; or torch is needed but not installed.
    """
    path = pathlib.Path(path).expanduser()
    if path.suffix not in READERS:
        raise WeightsError(
            f"unknown suffix {path.suffix!r} of a file of weights",
            key=path,
            allowed=READERS,
        )
    if not path.is_file():
        raise WeightsError(
            "is a folder, not a file of weights" if path.is_dir() else "no such file of weights",
            key=path,
        )
    try:
        tensors = READERS[path.suffix](path)
    except OSError as error:
        raise WeightsError(f"cannot be read: {one_line(error)}", key=path) from error
    if not tensors:
        raise WeightsError("holds no tensors", key=path)
    return {name: _number(path, name, array) for name, array in _stripped(tensors).items()}


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
        array = np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array
    return tensors


def _from_torch_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"{path.suffix} files need torch", key=path, cure="pip install 'flax_resnet[torch]'"
        ) from error
    try:
        with warnings.catch_warnings(action="ignore"):  # long warnings that repeat the error
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            "holds more than tensors, or is not a torch file (none of its code was run)",
            key=path,
            cure="save model.state_dict() instead",
        ) from error
    except Exception as error:  # torch raises many types for corrupted files
        raise _damaged(path, "a torch file", error) from error
    tensors = {}
    for name, value in _unwrapped(path, loaded).items():
        if not isinstance(value, torch.Tensor):
            raise WeightsError(f"{name} is a {type(value).__name__}, not a tensor", key=path)
        if value.is_floating_point() and value.dtype != torch.float64:
            value = value.float()
        try:
            tensors[str(name)] = value.detach().numpy()
        except (TypeError, RuntimeError) as error:  # sparse or quantized tensors
            raise WeightsError(
                f"tensor {name} cannot be read: {one_line(error)}", key=path
            ) from error
    return tensors


def _unwrapped(path: pathlib.Path, loaded: Any) -> dict:
    for _ in range(2):  # {"model_ema": {"state_dict": ...}}
        if isinstance(loaded, dict):
            inner = [loaded[k] for k in WRAPPERS if isinstance(loaded.get(k), dict) and loaded[k]]
            loaded = inner[0] if inner else loaded
    if not isinstance(loaded, dict):
        raise WeightsError(f"holds a {type(loaded).__name__}, not named tensors", key=path)
    # "n_averaged" is the counter of torch.optim.swa_utils.AveragedModel; all its tensors start with "module.".
    return {name: value for name, value in loaded.items() if name != "n_averaged"}


def _from_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("a single array")
        with archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, "an npz file of numbers", error) from error


def _damaged(path: pathlib.Path, kind: str, error: Exception) -> WeightsError:
    return WeightsError(f"is corrupted, or is not {kind}: {one_line(error)}", key=path)


READERS: dict[str, Callable[[pathlib.Path], dict[str, np.ndarray]]] = {
    ".safetensors": _from_safetensors,
    ".pth": _from_torch_file,
    ".pt": _from_torch_file,
    ".bin": _from_torch_file,
    ".npz": _from_npz,
}


def _stripped(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for prefix in PREFIXES * 2:  # in either order: torch.compile outside or inside DataParallel
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): array for name, array in tensors.items()}
    return tensors


def _number(path: pathlib.Path, name: str, array: np.ndarray) -> np.ndarray:
    """Return a floating array as float32 or float64, and an integer or boolean array unchanged."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        kind = getattr(array, "dtype", type(array).__name__)
        raise WeightsError(f"tensor {name} is of dtype {kind}, not of numbers", key=path)
    if array.dtype.kind != "f":
        return array
    if not np.isfinite(array).all():
        raise WeightsError(f"tensor {name} holds a number that is not finite", key=path)
    return array.astype(np.float32 if array.dtype.itemsize < 8 else np.float64, copy=False)
