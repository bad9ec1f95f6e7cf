"""Convert an encoded image for a packed dataset: to a JPEG of bounded size, or leave its bytes unchanged."""

import io
from typing import NamedTuple

from PIL import Image

from flax_resnet.data.images import eight_bits, orientation, reason, turn

# Pillow's sharpest antialiasing filter. A much larger JPEG is first decoded at 1/2, 1/4 or 1/8 of its size, but at
# least at twice the target size. For 2560x1708 -> 400x267 this is 2.5 times as fast, and pixels differ by 0.3 of
# 255 grey levels on average.
FILTER = Image.Resampling.LANCZOS
REDUCING_GAP = 2.0


class Packed(NamedTuple):
    """Encoded bytes, and their origin: "kept" unchanged, "resized", or "encoded" again at the same size."""

    encoded: bytes
    how: str


def pack_image(encoded: bytes, *, max_side: int, quality: int, upright: bool) -> Packed:
    """Convert an image to bounded size, without loss if it already fits.

    - A grey or RGB JPEG that fits is kept byte for byte.
    - A grey or RGB PNG that fits is kept if it is no larger than the JPEG that would replace it. This is common for
      icons and drawings. (Readers detect the format from the bytes, not from a name.)
    - All other images become JPEGs with 4:2:0 chroma and without metadata.

    Args:
      encoded: JPEG, PNG, BMP, WebP or GIF (its first frame).
      max_side: maximum of the longer side in pixels, at least 1. No image is enlarged.
      quality: quality of a newly encoded JPEG, 1 to 100.
      upright: whether to turn the pixels upright by their EXIF orientation. False for published datasets: training
        decodes them with TensorFlow, which ignores EXIF.

    Raises:
      ValueError: the image cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            number = orientation(encoded) if upright else 0
            fits = max(image.size) <= max_side
            keep = fits and number <= 1 and _plain(image)
            if keep and image.format == "JPEG":
                image.load()  # detects a truncated file
                return Packed(encoded, "kept")
            made = _encode(_small(image, max_side, number), quality)
            if keep and image.format == "PNG" and len(encoded) <= len(made):
                return Packed(encoded, "kept")
            return Packed(made, "encoded" if fits else "resized")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error and more
        raise ValueError(reason(error)) from error


def _plain(image: Image.Image) -> bool:
    return image.mode in ("L", "RGB") and "transparency" not in image.info


def _small(image: Image.Image, max_side: int, number: int) -> Image.Image:
    image = eight_bits(image)
    if image.mode not in ("L", "RGB"):  # palette indices cannot be averaged
        image = image.convert("RGB")
    image.thumbnail((max_side, max_side), FILTER, reducing_gap=REDUCING_GAP)
    return turn(image, number).convert("RGB")


def _encode(image: Image.Image, quality: int) -> bytes:
    # Optimised Huffman tables would save 2 to 3% of the bytes, and make encoding 2.5 times slower.
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()
