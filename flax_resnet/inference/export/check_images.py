"""The test images of an export: of the run's evaluation split, or else photographs of scikit-learn."""

import logging
import pathlib

import numpy as np
from PIL import Image

from flax_resnet.config import Config
from flax_resnet.data.images import upright
from flax_resnet.data.open import open_source
from flax_resnet.errors import UserError

log = logging.getLogger("flax_resnet")

COUNT = 4
LARGEST = 1024  # pixels of the longer side; larger images would make the export large
SAMPLES = (
    "sample photographs of scikit-learn (china.jpg and flower.jpg, CC BY), and their mirror images"
)


def check_images(config: Config, *, own: bool) -> tuple[list[Image.Image], str]:
    """Return a few upright RGB images, and a description of their source.

    Args:
      config: the configuration.
      own: whether to look for the evaluation split of the configuration. If it is not there, a line says so.
    """
    if own:
        data = config.data
        split = data.eval_split
        try:
            source = open_source(data, train=split == data.train_split, split=split)
            indices = np.linspace(0, len(source) - 1, min(COUNT, len(source))).astype(int)
            records = source.read(indices)
            images = [
                upright(encoded, exif=source.orientations, name=source.describe(int(index)))
                for encoded, index in zip(records.images, indices, strict=True)
            ]
            return list(map(_smaller, images)), f"images of the run's split {split!r}"
        except UserError as error:
            log.info("the images of the run are not at hand (%s); checking with %s", error, SAMPLES)
    return _samples(), SAMPLES


def _samples() -> list[Image.Image]:
    import sklearn.datasets

    folder = pathlib.Path(sklearn.datasets.__file__).parent / "images"
    photos = [upright(folder / name, exif=False, name=name) for name in ("china.jpg", "flower.jpg")]
    return [*photos, *(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for photo in photos)]


def _smaller(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.thumbnail((LARGEST, LARGEST))
    return image
