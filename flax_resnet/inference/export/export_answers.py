"""The answers of an exported model for photos, computed in the runtime of its format."""

import json
import os
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.special

from flax_resnet.augment import evaluation_images
from flax_resnet.augment.augment_section import Augment
from flax_resnet.data.data_section import Data
from flax_resnet.data.images import prepare_image, upright
from flax_resnet.errors import ConfigError, ExportError, UserError, one_line
from flax_resnet.inference.export.format_row import FORMATS, FormatRow
from flax_resnet.inference.export.replaying import CONFIG, ExportFolder, read_export
from flax_resnet.inference.photo_answers import Answer
from flax_resnet.inference.pretrained_config import evaluation_data
from flax_resnet.inference.training_images import Neighbour, TrainingImages
from flax_resnet.weights import from_config


class _About(NamedTuple):
    """What config.json says of the images and the classes."""

    data: Data
    augment: Augment
    class_names: tuple[str, ...]


class ExportAnswers:
    """The answers of an exported model; see `PhotoAnswers`. It has neither heat maps nor similar images.

    Args:
      folder: the folder of an export.

    Attributes:
      format: the format that is used, a name of `FORMATS`: the first one with an installed runtime.
      runtime: its runtime.

    Raises:
      ConfigError: no runtime is installed.
      ExportError: the folder is no export, is damaged, or cannot be run.
    """

    training: TrainingImages | None = None
    no_heat = "An exported model has no Grad-CAM: its gradients are not stored."
    no_neighbours = "An exported model has no similar training images: its features are not stored."

    def __init__(self, folder: str | pathlib.Path) -> None:
        exported = read_export(folder)
        self._signature, self._about = exported.signature, _read_about(exported)
        row = _row(exported)
        self.format, self.runtime, self._layout = row.name, row.runtime, row.layout
        self.class_names = self._about.class_names
        try:
            self._run = row.open(exported.files[row.name], self._signature)
            self._probabilities(exported.inputs[0])
        except (UserError, MemoryError):
            raise
        except Exception as error:  # the runtimes raise many types for damaged files
            problem = f"cannot be run by {row.runtime}: {one_line(error)}"
            raise ExportError(problem, key=exported.files[row.name]) from error

    def answer(self, file: str | os.PathLike) -> Answer:
        """Return the prediction for an image file."""
        data = self._about.data
        photo = upright(file, exif=data.exif, name=os.fspath(file))
        pixels = prepare_image(photo, data, name="photo")
        images: Any = pixels[None]
        if self._signature.preprocessing == "resize":
            images = np.asarray(photo)[None]
        elif not self._signature.takes_bytes:
            images = evaluation_images(jnp.asarray(images), self._about.augment)
        return Answer(pixels, self._probabilities(np.asarray(images)), np.zeros(0, np.float32))

    def heat(self, file: str | os.PathLike, label: int) -> np.ndarray:
        """Raise ConfigError: there are no heat maps."""
        raise ConfigError(self.no_heat, key="model")

    def neighbours(self, answer: Answer) -> tuple[Neighbour, ...]:
        """Return nothing: there are no features."""
        return ()

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities [K] of one image, NHWC [1, H, W, C]."""
        rows = np.repeat(images, self._signature.batch_size or 1, axis=0)
        if self._layout == "NCHW" and not self._signature.takes_bytes:
            rows = rows.transpose(0, 3, 1, 2)
        outputs = self._run(np.ascontiguousarray(rows))[0].astype(np.float32)
        if outputs.shape != (len(self.class_names),):
            raise ExportError(
                f"has {outputs.size} outputs for {len(self.class_names)} classes", key="model"
            )
        if self._signature.softmax:
            return outputs
        return np.asarray(scipy.special.softmax(outputs), np.float32)


def _row(exported: ExportFolder) -> FormatRow:
    rows = [FORMATS[name] for name in exported.files]
    for row in rows:
        if row.runtime:
            return row
    problem = "none of its runtimes is installed"
    raise ConfigError(problem, key=exported.path, cure=rows[0].install(rows[0].runtimes[:1]))


def _read_about(exported: ExportFolder) -> _About:
    file = exported.path / CONFIG
    about = json.loads(file.read_text(encoding="utf-8"))
    try:
        weights, exif = from_config(about), bool(about["export"]["exif"])
    except (UserError, KeyError) as error:
        raise ExportError(f"is damaged: {one_line(error)}", key=file) from error
    size = exported.signature.image_size
    data = evaluation_data(weights._replace(image_size=size)).but(exif=exif)
    return _About(data, Augment(mean=weights.mean, std=weights.std), weights.class_names)
