"""From files or arrays to the uint8 images a network was evaluated on; Pillow only, no TensorFlow."""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from flax_resnet.config import Data
from flax_resnet.errors import DataError, one_line

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def prepare(images: np.ndarray | Sequence, config: Data) -> np.ndarray:
    """Cuts and resizes images as the evaluation pipeline does.

    Args:
      images: uint8 [N, H, W, 3] or [N, H, W, 1], or a sequence of uint8 [H, W, 3] arrays, file paths or
        Pillow images, of any sizes.
      config: size, crop and interpolation.

    Returns:
      uint8 [N, image_size, image_size, 3].

    Raises:
      DataError: a file cannot be read, or an array is not uint8 or has another shape.
    """
    if isinstance(images, str | pathlib.Path | Image.Image):
        images = [images]
    size = config.image_size
    prepared = [_resized(_opened(image), config) for image in images]
    return np.stack(prepared) if prepared else np.zeros((0, size, size, 3), np.uint8)


def _opened(image: np.ndarray | str | pathlib.Path | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, str | pathlib.Path):
        try:
            with Image.open(image) as opened:
                return opened.convert("RGB")
        except (OSError, ValueError) as error:
            raise DataError(f"image {image}: {one_line(error)}") from error
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] not in (1, 3):
        raise DataError(
            f"image of shape {list(array.shape)} and dtype {array.dtype}: must be uint8 [H, W, 3]"
        )
    return Image.fromarray(np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array)


def _resized(image: Image.Image, config: Data) -> np.ndarray:
    width, height = image.size
    if config.eval_crop == "center":
        side = max(
            1, int(np.rint(np.float32(config.eval_crop_fraction) * np.float32(min(width, height))))
        )
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if image.size != (config.image_size, config.image_size):
        image = image.resize((config.image_size, config.image_size), FILTERS[config.interpolation])
    return np.asarray(image)
