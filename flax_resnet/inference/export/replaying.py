"""Replay the test images of an export in each format's own runtime, and compare the outputs."""

import hashlib
import importlib.metadata
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from flax_resnet.errors import ConfigError, ExportError, UserError, one_line
from flax_resnet.inference.export.format_row import FORMATS, FormatRow
from flax_resnet.inference.export.signature import Signature
from flax_resnet.training.runs.file_checksums import is_inside
from flax_resnet.weights.npz_files import read_npz

SCHEMA = 1  # of the key "export" in config.json
CONFIG, CHECK, EXPECTED = "config.json", "check", "expected.npz"
TOLERANCES = {"float32": 1e-4, "float16": 1e-2}
# A resize in the model gives nearly the pixels of Pillow: some differ by one level of 255.
RESIZE_TOLERANCE = 1e-2
# Probabilities that are not compared: float32 has few digits of them, relative to the sum of 1.
RARE = 1e-6


class Replayed(NamedTuple):
    """The result of one format.

    Attributes:
      format: a name of `FORMATS`.
      runtime: the runtime and its version; or, if none is installed, the command that installs one.
      images: number of images.
      difference: see `largest_difference`; None if no runtime is installed.
      tolerance: the largest difference that is allowed.
    """

    format: str
    runtime: str
    images: int
    difference: float | None
    tolerance: float

    @property
    def differs(self) -> bool:
        """Whether outputs were computed and are not as expected."""
        return self.difference is not None and self.difference > self.tolerance


class ExportFolder(NamedTuple):
    """An exported model, as its folder says.

    Attributes:
      path: the folder.
      files: {format: its file}.
      signature: what the model takes and returns.
      inputs: the inputs of the test images, NHWC, one [1, H, W, C] per image.
      outputs: their expected outputs [N, K].
    """

    path: pathlib.Path
    files: dict[str, pathlib.Path]
    signature: Signature
    inputs: list[np.ndarray]
    outputs: np.ndarray


def replay(folder: str | pathlib.Path) -> list[Replayed]:
    """Replay the test images of an export in the runtime of every format in it. No run is needed.

    Raises:
      ExportError: the folder is no export, or it is damaged.
    """
    exported = read_export(folder)
    return [_replayed(exported, FORMATS[name], file) for name, file in exported.files.items()]


def read_export(folder: str | pathlib.Path) -> ExportFolder:
    """Read the folder of an export.

    Raises:
      ExportError: the folder is no export, or it is damaged.
    """
    path = pathlib.Path(folder).expanduser()
    file = path / CONFIG
    try:
        if not file.is_file():
            raise ExportError(f"is no exported model: it has no {CONFIG}", key=path)
        about = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(about, dict) and "export" not in about:
            raise ExportError("is no exported model: it describes no export", key=file)
        about = about["export"]
        if about["schema"] != SCHEMA:
            raise ValueError(f"schema {about['schema']}")
        signature = Signature(**about["signature"])
        files = {name: path / known["file"] for name, known in about["formats"].items()}
        checksums = dict(about["files"])
        if unknown := files.keys() - FORMATS.keys():
            raise ValueError(f"unknown format {unknown.pop()!r}")
        names = [known["file"] for known in about["formats"].values()]
        for name in (*names, *checksums, f"{CHECK}/{EXPECTED}"):
            if not is_inside(path, name):
                raise ValueError(f"{name!r} is no file of the folder")
    except ExportError:
        raise
    except UserError as error:
        raise ExportError(f"is damaged: {error}", key=file) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise ExportError(f"is damaged, or of another version: {what}", key=file) from error
    _check_files(path, files, checksums)
    inputs, outputs = _expected(path / CHECK, signature)
    return ExportFolder(path, files, signature, inputs, outputs)


def checksums_of(folder: pathlib.Path) -> dict[str, str]:
    """Return {path in the folder: SHA-256} of all files."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): _checksum(file) for file in files}


def _checksum(file: pathlib.Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_files(
    folder: pathlib.Path, formats: Mapping[str, pathlib.Path], checksums: Mapping[str, str]
) -> None:
    """Raise ExportError for a missing or changed file: LiteRT, for one, crashes on a truncated file."""
    for name, file in formats.items():
        stored = [known for known in checksums if (folder / known).is_relative_to(file)]
        if not stored:
            raise ExportError(f"names no checksum of {name}", key=folder / CONFIG)
    for known, checksum in checksums.items():
        file = folder / known
        try:
            same = _checksum(file) == checksum
        except OSError as error:
            raise ExportError(f"cannot be read: {one_line(error)}", key=file) from error
        if not same:
            raise ExportError(f"is damaged: its SHA-256 is not that in {CONFIG}", key=file)


def _expected(folder: pathlib.Path, signature: Signature) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the inputs and outputs of the test images."""
    file = folder / EXPECTED
    try:
        arrays = read_npz(file)
        outputs = arrays["outputs"]
        if signature.preprocessing == "resize":
            pictures = sorted(folder.glob("*.png"))
            inputs = [np.asarray(Image.open(p).convert("RGB"))[None] for p in pictures]
        else:
            inputs = [array[None] for array in arrays["inputs"]]
    except Exception as error:  # NumPy, zipfile and Pillow raise many types for damaged files
        raise ExportError(f"cannot be read: {one_line(error)}", key=file) from error
    size = signature.image_size
    dtype = np.uint8 if signature.takes_bytes else np.float32
    fit = outputs.ndim == 2 and outputs.dtype == np.float32 and len(inputs) == len(outputs) > 0
    for x in inputs:
        sized = signature.preprocessing == "resize" or x.shape[1:3] == (size, size)
        fit = fit and x.ndim == 4 and x.dtype == dtype and sized
    if not fit:
        raise ExportError(f"does not fit the signature in {CONFIG}", key=file)
    return inputs, outputs


def _replayed(exported: ExportFolder, row: FormatRow, file: pathlib.Path) -> Replayed:
    signature, count = exported.signature, len(exported.inputs)
    tolerance = tolerance_of(signature)
    if not row.runtime:
        install = row.install(row.runtimes[:1])
        return Replayed(row.name, install, count, None, tolerance)
    try:
        run = row.open(file, signature)
        parts = list(_batches(exported, row.layout, run))
    except UserError as error:
        raise ExportError(f"cannot be run: {error}", key=file) from error
    except MemoryError:
        raise
    except Exception as error:  # the runtimes raise many types for damaged files
        raise ExportError(f"cannot be run by {row.runtime}: {one_line(error)}", key=file) from error
    outputs = np.concatenate(parts)
    difference = largest_difference(outputs, exported.outputs, softmax=signature.softmax)
    return Replayed(row.name, _with_version(row.runtime), count, difference, tolerance)


def _batches(
    exported: ExportFolder, layout: str, run: Callable[[np.ndarray], np.ndarray]
) -> Iterator[np.ndarray]:
    """Yield the outputs of the images, in batches that the model takes."""
    signature, inputs = exported.signature, exported.inputs
    # Images of several sizes cannot be one batch.
    alone = signature.preprocessing == "resize"
    size = 1 if alone else signature.batch_size or len(inputs)
    for start in range(0, len(inputs), size):
        images = np.concatenate(inputs[start : start + size])
        count = len(images)
        rows = np.arange(signature.batch_size or count) % count  # a fixed batch is filled up
        images = images[rows]
        if layout == "NCHW" and not signature.takes_bytes:
            images = images.transpose(0, 3, 1, 2)
        yield run(np.ascontiguousarray(images))[:count]


def tolerance_of(signature: Signature) -> float:
    """Return the largest difference that is allowed."""
    if signature.preprocessing == "resize":
        return max(RESIZE_TOLERANCE, TOLERANCES[signature.precision])
    return TOLERANCES[signature.precision]


def largest_difference(outputs: np.ndarray, expected: np.ndarray, *, softmax: bool) -> float:
    """Return the largest difference of logits, relative to the largest logit.

    Of probabilities, the logarithms are compared: logits up to a constant. Those below `RARE` are left out.
    The result is infinite if the shapes differ, a value is not a number, or a probability is 0.
    """
    if outputs.shape != expected.shape or not np.isfinite(outputs).all():
        return float("inf")
    found, wanted = outputs.astype(np.float64), expected.astype(np.float64)
    if softmax:
        frequent = wanted > RARE
        found, wanted = found[frequent], wanted[frequent]
        if (found <= 0).any():
            return float("inf")
        found, wanted = np.log(found), np.log(wanted)
    largest = max(np.abs(wanted).max(initial=0), 1.0 if softmax else np.finfo("f").tiny)
    return float(np.abs(found - wanted).max(initial=0) / largest)


def _with_version(module: str) -> str:
    version: Any = getattr(sys.modules.get(module), "__version__", "")
    if not version:
        try:
            version = importlib.metadata.version(module.replace("_", "-"))
        except importlib.metadata.PackageNotFoundError:
            return module
    return f"{module} {version}"


def refuse_differences(results: list[Replayed], folder: pathlib.Path) -> None:
    """Raise ExportError if the outputs of a format differ, and ConfigError if no runtime is installed."""
    for result in results:
        if result.differs:
            raise ExportError(
                f"the outputs of {result.format} differ by {result.difference:.1e} of the largest",
                key=folder,
                allowed=f"at most {result.tolerance:g}",
            )
    if results and all(result.difference is None for result in results):
        problem = "none of its runtimes is installed"
        raise ConfigError(problem, key=folder, cure=results[0].runtime)
