"""Write the folder of an export: the model in each format, its labels, description and check."""

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from flax_resnet.errors import ConfigError, OutputError, writing
from flax_resnet.inference.classifier import Classifier
from flax_resnet.inference.export.check_images import check_images
from flax_resnet.inference.export.format_row import FORMATS, FormatRow
from flax_resnet.inference.export.program import Program, program_of
from flax_resnet.inference.export.readme import (
    label_line,
    model_card,
    preparation,
    run_result,
)
from flax_resnet.inference.export.replaying import (
    CHECK,
    CONFIG,
    EXPECTED,
    SCHEMA,
    Replayed,
    checksums_of,
    refuse_differences,
    replay,
    tolerance_of,
)
from flax_resnet.inference.export.signature import Signature
from flax_resnet.inference.network_choice import NetworkChoice
from flax_resnet.training.pretrained import described
from flax_resnet.training.runs.folder import RunFolder
from flax_resnet.version import __version__

log = logging.getLogger("flax_resnet")


def export(
    network: Classifier | NetworkChoice | str | pathlib.Path,
    output: str | pathlib.Path,
    format: str | Sequence[str] = "onnx",
    *,
    image_size: int | None = None,
    preprocessing: str = "none",
    softmax: bool = False,
    batch_size: int | None = None,
    precision: str = "float32",
) -> pathlib.Path:
    """Write a network as a folder for other runtimes, and replay its test images there.

    The folder holds the model in each format, labels.txt, config.json, README.md, and check/: test images with the
    outputs of this package. It is written under another name and renamed when it is complete and checked.

    Args:
      network: a classifier, a `NetworkChoice`, or a run folder (its last checkpoint).
      output: the folder, new or empty.
      format: names of `FORMATS`: one, several separated by commas, or a sequence.
      image_size: height and width of the network's images in pixels; None for the evaluation size of the network.
      preprocessing: "none" for normalised float32 images; "normalize" for uint8 images of the network's size;
        "resize" for uint8 images of any size.
      softmax: whether the model returns probabilities instead of logits.
      batch_size: number of images per call; None for any number.
      precision: "float32", or "float16" for weights of half the size.

    Returns:
      The folder.

    Raises:
      ConfigError: an option is unknown, a format cannot express one, or a package is missing.
      ExportError: the outputs of a format differ from those of this package.
      OutputError: the folder is not empty, or cannot be written.
      UserError: there is no such run or weights.
    """
    rows = _rows(format)
    folder = pathlib.Path(output).expanduser().absolute()
    _check_output(folder)
    options: dict[str, Any] = {
        "preprocessing": preprocessing,
        "softmax": softmax,
        "batch_size": batch_size,
        "precision": precision,
    }
    for row in rows:  # before the network is read, which may be a download
        row.check(Signature(image_size=image_size or 1, **options))
    if isinstance(network, str | os.PathLike):
        network = NetworkChoice(workdir=os.fspath(network))
    workdir = network.workdir if isinstance(network, NetworkChoice) else ""
    classifier = network.load() if isinstance(network, NetworkChoice) else network
    config = classifier.config
    size = config.evaluating().data.image_size if image_size is None else image_size
    program = program_of(classifier, Signature(image_size=size, **options))
    for row in rows:
        row.check_size(program)
    images, source = check_images(config, own=bool(workdir))
    result = None
    if workdir:
        result = run_result(RunFolder.at(workdir).read_records(), config, classifier.step)
    with _new_folder(folder) as partial:
        _write_check(program, images, partial / CHECK)
        formats = {row.name: _written(row, program, partial) for row in rows}
        about = _description(program, formats, source)
        about["export"]["files"] = checksums_of(partial)
        (partial / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        labels = "".join(f"{label_line(name)}\n" for name in program.class_names)
        (partial / "labels.txt").write_text(labels, encoding="utf-8")
        results = replay(partial)
        _report(results, folder)
        card = model_card(program, formats, results, source, result)
        (partial / "README.md").write_text(card, encoding="utf-8")
    return folder


def _rows(format: str | Sequence[str]) -> list[FormatRow]:
    """Return the rows of the named formats, without repetitions."""
    names = [name.strip() for name in format.split(",")] if isinstance(format, str) else format
    rows = []
    for name in dict.fromkeys(names):
        if name not in FORMATS:
            raise ConfigError(key="format", value=name, allowed=tuple(FORMATS))
        rows.append(FORMATS[name])
    if not rows:
        raise ConfigError("names no format", key="format", value=format, allowed=tuple(FORMATS))
    return rows


def _check_output(folder: pathlib.Path) -> None:
    with writing(folder):
        if folder.exists() and not folder.is_dir():
            raise OutputError("is a file", key=folder, allowed="a new folder")
        if folder.is_dir() and any(folder.iterdir()):
            raise OutputError("is not empty", key=folder, cure="name a new folder")


@contextlib.contextmanager
def _new_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary folder that gets its name at the end, or is removed after an error."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        with writing(folder):
            partial.mkdir(parents=True)
            yield partial
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_check(program: Program, images: Sequence[Image.Image], folder: pathlib.Path) -> None:
    """Write test images, with the inputs and outputs of the model."""
    folder.mkdir()
    pixels = np.stack([program.prepared(image) for image in images])
    outputs = program.expected(pixels)
    if not np.isfinite(outputs).all():
        raise ConfigError(
            "the outputs of the network are not finite",
            key="image_size",
            value=program.signature.image_size,
            cure="check the weights, or choose another size",
        )
    whole = program.signature.preprocessing == "resize"
    for number, image in enumerate(images if whole else map(Image.fromarray, pixels), 1):
        image.save(folder / f"image_{number}.png")
    if whole:
        np.savez(folder / EXPECTED, outputs=outputs)
    else:
        np.savez(folder / EXPECTED, inputs=program.model_input(pixels), outputs=outputs)


def _written(row: FormatRow, program: Program, folder: pathlib.Path) -> dict[str, Any]:
    """Write one format, and return its entry in config.json."""
    row.write(program, folder / row.file)
    image, signature = program.input(), program.signature
    batch, layout = signature.batch_size or "batch", row.layout
    shape: list[Any] = [batch, *image.shape[1:]]
    if signature.takes_bytes:
        layout = "NHWC"
    if signature.preprocessing == "resize":
        shape[1:3] = "height", "width"
    if layout == "NCHW":
        shape = [batch, shape[3], *shape[1:3]]
    return {
        "file": row.file,
        "input": {"name": "images", "shape": shape, "dtype": image.dtype.name, "layout": layout},
        "output": {
            "name": "probabilities" if signature.softmax else "logits",
            "shape": [batch, len(program.class_names)],
            "dtype": "float32",
        },
    }


def _description(program: Program, formats: dict[str, Any], images: str) -> dict[str, Any]:
    """Return config.json: timm's keys, and `export`. `load_pretrained` reads it beside model.safetensors."""
    config, signature = program.config, program.signature
    about = described(config, program.model, program.class_names)
    about["export"] = {
        "schema": SCHEMA,
        "signature": dataclasses.asdict(signature),
        "formats": formats,
        "preprocessing": preparation(program),
        "exif": config.data.exif,
        "views": {"eval_flip": config.augment.eval_flip, "eval_shift": config.augment.eval_shift},
        "check": {"images": images, "tolerance": tolerance_of(signature)},
        "versions": {
            "flax_resnet": __version__,
            **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        },
    }
    return about


def _report(results: list[Replayed], folder: pathlib.Path) -> None:
    """Log the results; raise ExportError if outputs differ."""
    checked = [result for result in results if result.difference is not None]
    refuse_differences(checked, folder)
    for result in results:
        if result.difference is None:
            log.warning(
                "%s is not checked: %s, then flax-resnet export --check %s",
                result.format,
                result.runtime,
                folder,
            )
        else:
            log.info(
                "%s: %d images in %s, largest difference %.1e",
                result.format,
                result.images,
                result.runtime,
                result.difference,
            )
