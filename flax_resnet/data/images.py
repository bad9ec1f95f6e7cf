"""Decode, crop and resize images with Pillow, without TensorFlow: for prediction, and for rare files in training.

A path, encoded bytes, a Pillow image and an array of the same picture give the same pixels. `data.decode` gives
these pixels in training.
"""

import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from flax_resnet.data.data_section import Data
from flax_resnet.errors import DataError, one_line

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# A larger image, such as a strip of 12000x4 pixels, is not resized as a whole before its centre is cropped: only
# the centre is computed. The pixels may differ, because Pillow may then do its two passes in the other order.
LARGEST_RESIZED = 1 << 24  # pixels
# An encoded image without these bytes has no orientation: EXIF in JPEG, PNG, WebP and AVIF, AVIF's own boxes, and
# XMP in JPEG, PNG, WebP and GIF.
ORIENTATION_MARKS = (
    *(b"Exif", b"eXIf", b"Raw profile type exif", b"EXIF", b"irot", b"imir"),
    *(b"ns.adobe.com/xap", b"XML:com.adobe.xmp", b"XMP "),
)
# Pillow's operation that turns an image upright, by its EXIF orientation (Exif 2.3, tag 0x0112).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def prepare(images: Any, config: Data) -> np.ndarray:
    """Crop and resize images like the evaluation pipeline.

    Args:
      images: images as for `each_image`.
      config: size, crop and interpolation, and whether images are turned upright by their EXIF or XMP orientation.

    Returns:
      uint8 [N, image_size, image_size, 3].

    Raises:
      DataError: as `prepare_image`. The error names the file, or the position of the image.
    """
    size = config.image_size
    named = enumerate(each_image(images))
    prepared = [prepare_image(image, config, name=f"image {number}") for number, image in named]
    return np.stack(prepared) if prepared else np.zeros((0, size, size, 3), np.uint8)


def each_image(images: Any) -> Iterator[Any]:
    """Yield images one by one.

    Args:
      images: uint8 [N, H, W, 3] or [N, H, W, 1]; or an iterable of file paths, encoded images (bytes), Pillow
        images, or uint8 arrays [H, W, 3] or [H, W, 1], of any sizes; or a single path, encoded or Pillow image.
    """
    if isinstance(images, str | os.PathLike | bytes | bytearray | Image.Image):
        images = [images]
    yield from images


def prepare_image(image: Any, config: Data, *, name: str) -> np.ndarray:
    """Crop and resize one image like the evaluation pipeline.

    Args:
      image: one item of `each_image`.
      config: as for `prepare`.
      name: name of the image for an error; a path is named by itself.

    Returns:
      uint8 [image_size, image_size, 3].

    Raises:
      DataError: Pillow cannot read the image, or an array is not uint8 or has another shape.
    """
    return _resized(upright(image, exif=config.exif, name=name), config)


def upright(image: Any, *, exif: bool, name: str) -> Image.Image:
    """Return an image in mode RGB; of several frames, the first of a file, or the current one of a Pillow image.

    Args:
      image: one item of `each_image`.
      exif: whether to turn the image upright by its EXIF or XMP orientation.
      name: as for `prepare_image`.

    Returns:
      A Pillow image without metadata. It has 8 bits: of 16 bits, the high byte is kept. Transparency is dropped.

    Raises:
      DataError: as `prepare_image`.
    """
    is_file = isinstance(image, str | os.PathLike)
    if not is_file and not isinstance(image, bytes | bytearray | Image.Image):
        return Image.fromarray(_checked(np.asarray(image), name))
    try:
        if isinstance(image, Image.Image):
            return _rgb(image, exif=exif)
        with Image.open(image if is_file else io.BytesIO(image)) as opened:
            return _rgb(opened, exif=exif)
    except MemoryError:
        raise
    except Exception as error:  # corrupted files raise OSError, SyntaxError, struct.error and more
        problem = f"cannot be read: {reason(error)}"
        raise DataError(problem, key=os.fspath(image) if is_file else name) from error


def orientation(encoded: bytes) -> int:
    """Return the EXIF or XMP orientation of an encoded image, 1 to 8, or 0 if there is none."""
    if not any(mark in encoded for mark in ORIENTATION_MARKS):  # microseconds; Pillow takes 50
        return 0
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            # Pillow turns a TIFF image upright itself, when it reads the pixels.
            return 0 if opened.format == "TIFF" else _orientation(opened)
    except Exception:  # decoding fails later, with the file's name
        return 0


def reason(error: Exception) -> str:
    """Return Pillow's error in one line."""
    if isinstance(error, UnidentifiedImageError):  # its message may be only the address of a buffer
        return "not an image that Pillow can read"
    if isinstance(error, OSError | ValueError):
        return one_line(error)
    return f"{type(error).__name__}: {one_line(error)}"


def eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of 16 bits with 8 bits, and any other image unchanged. Keeps the high byte like TensorFlow.

    Raises:
      ValueError: the range of the pixels is unknown: they are floating-point, or do not fit into 16 bits.
    """
    if image.mode == "F":
        raise ValueError("has floating-point pixels, whose range is unknown")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)  # Pillow would clip values above 255
    if image.mode == "I" and (values.min() < 0 or values.max() >= 1 << 16):
        raise ValueError("has pixels of 32 bits, whose range is unknown")
    return Image.fromarray((values >> 8).astype(np.uint8))


def turn(image: Image.Image, number: int) -> Image.Image:
    """Turn an image with this EXIF orientation upright."""
    return image.transpose(TURNS[number]) if number in TURNS else image


def _rgb(image: Image.Image, *, exif: bool) -> Image.Image:
    image.load()
    # Read before a conversion loses the metadata.
    number = _orientation(image) if exif else 0
    if "transparency" in image.info:  # Pillow warns of a conversion that drops it
        image = image.copy()
        del image.info["transparency"]
    upright = turn(eight_bits(image).convert("RGB"), number)
    upright.info = {}  # the orientation has been applied
    return upright


def _orientation(image: Image.Image) -> int:
    try:
        number = image.getexif().get(ExifTags.Base.Orientation, 0)
    except Exception:  # broken EXIF data raise many types of errors
        return 0
    return number if number in range(1, 9) else 0


def _checked(array: np.ndarray, name: str) -> np.ndarray:
    """Return an array as uint8 [H, W, 3]; raise DataError if it is no such image."""
    is_image = array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] in (1, 3)
    if not is_image or not array.size:
        raise DataError(
            f"has shape {list(array.shape)} and dtype {array.dtype}",
            key=name,
            allowed="uint8 [H, W, 3] or [H, W, 1]",
        )
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array


def _resized(image: Image.Image, config: Data) -> np.ndarray:
    size, resample = config.image_size, FILTERS[config.interpolation]
    if config.eval_crop == "resize":
        return np.asarray(image.resize((size, size), resample))
    short = int(size / config.eval_crop_fraction + 1e-6)
    least = min(image.size)
    width, height = (short * side // least for side in image.size)
    left, top = (round((side - size) / 2) for side in (width, height))
    if width * height <= LARGEST_RESIZED:
        # Pillow returns a copy if the size is already right.
        image = image.resize((width, height), resample)
        return np.asarray(image.crop((left, top, left + size, top + size)))

    def stored(start: int, side: int, full: int) -> tuple[float, float]:
        """Return the part of a side of the stored image that becomes the crop."""
        return start * full / side, min((start + size) * full / side, full)

    (x0, x1), (y0, y1) = stored(left, width, image.width), stored(top, height, image.height)
    return np.asarray(image.resize((size, size), resample, box=(x0, y0, x1, y1)))
