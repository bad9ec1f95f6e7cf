"""Preprocess files or arrays like the evaluation pipeline, to uint8 images, with Pillow and without TensorFlow."""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from flax_resnet.data.data_section import Data
from flax_resnet.errors import DataError, one_line

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def prepare(images: np.ndarray | Sequence, config: Data) -> np.ndarray:
    """Crop and resize images like the evaluation pipeline.

    Args:
      images: uint8 [N, H, W, 3] or [N, H, W, 1], or a sequence of uint8 [H, W, 3] arrays, file paths or
        Pillow images, of any sizes.
      config: size, crop and interpolation, and whether files are turned upright by their EXIF orientation.

    Returns:
      uint8 [N, image_size, image_size, 3].

    Raises:
      DataError: a file cannot be read, or an array is not uint8 or has another shape.
    """
    if isinstance(images, str | pathlib.Path | Image.Image):
        images = [images]
    size = config.image_size
    prepared = [_resized(_opened(image, exif=config.exif), config) for image in images]
    return np.stack(prepared) if prepared else np.zeros((0, size, size, 3), np.uint8)


def _opened(image: np.ndarray | str | pathlib.Path | Image.Image, *, exif: bool) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, str | pathlib.Path):
        try:
            with Image.open(image) as opened:
                upright = ImageOps.exif_transpose(opened) if exif else opened
                if upright.mode.startswith("I;16"):  # Pillow would clip values above 255
                    upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
                return upright.convert("RGB")
        except (OSError, ValueError) as error:
            raise DataError(f"cannot be read: {one_line(error)}", key=image) from error
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] not in (1, 3):
        raise DataError(
            f"an image has shape {list(array.shape)} and dtype {array.dtype}",
            key="images",
            allowed="uint8 [H, W, 3] or [H, W, 1]",
        )
    return Image.fromarray(np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array)


def _resized(image: Image.Image, config: Data) -> np.ndarray:
    size, resample = config.image_size, FILTERS[config.interpolation]
    if config.eval_crop == "resize":
        return np.asarray(image.resize((size, size), resample))
    short = int(size / config.eval_crop_fraction + 1e-6)
    least = min(image.size)
    # Pillow returns a copy if the size is already right.
    width, height = (short * side // least for side in image.size)
    image = image.resize((width, height), resample)
    left, top = (round((side - size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))
