"""Any encoded image to what a packed dataset stores of it: a JPEG of bounded size, or the bytes as they are."""

import io
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# Pillow's sharpest filter for making smaller, antialiased. A much larger JPEG is first decoded at 1/2, 1/4 or 1/8
# of its size, but at least at twice the wanted size: 2.5 times as fast at 2560x1708 -> 400x267, and 0.3 grey
# levels of 255 away on average.
FILTER = Image.Resampling.LANCZOS
REDUCING_GAP = 2.0
ORIENTATION = ExifTags.Base.Orientation


class Packed(NamedTuple):
    """Encoded bytes, and how they came about: "kept" as they were, "resized" or "encoded" anew."""

    encoded: bytes
    how: str


def pack_image(encoded: bytes, *, max_side: int, quality: int, upright: bool) -> Packed:
    """Makes an image small enough; loses nothing of one that is.

    A grey or RGB JPEG that fits is kept byte for byte. A grey or RGB PNG that fits is kept where it is no larger
    than the JPEG that would replace it, as icons and drawings are: all readers look at the bytes, not at a name.
    Everything else becomes a JPEG with 4:2:0 chroma and without metadata.

    Args:
      encoded: JPEG, PNG, BMP, WebP or GIF (its first frame).
      max_side: the longer side is at most this, pixels; at least 1. No image is made larger.
      quality: of a JPEG made here, 1 to 100.
      upright: whether to turn the pixels as EXIF says. Training decodes with TensorFlow, which does not look
        at EXIF, so a dataset that was published as it stands is left as it stands.

    Raises:
      ValueError: the image cannot be decoded, for whatever reason.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            turned = upright and image.getexif().get(ORIENTATION, 1) not in (0, 1)
            fits = max(image.size) <= max_side
            keep = fits and not turned and _plain(image)
            if keep and image.format == "JPEG":
                image.load()  # so that a truncated one is found here
                return Packed(encoded, "kept")
            made = _encode(_small(image, max_side, upright), quality)
            if keep and image.format == "PNG" and len(encoded) <= len(made):
                return Packed(encoded, "kept")
            return Packed(made, "encoded" if fits else "resized")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error and more
        raise ValueError(_reason(error)) from error


def _plain(image: Image.Image) -> bool:
    return image.mode in ("L", "RGB") and "transparency" not in image.info


def _small(image: Image.Image, max_side: int, upright: bool) -> Image.Image:
    exif = image.getexif() if upright else None
    if image.mode.startswith("I"):  # 16 bits: convert() would clip, TensorFlow drops the low byte
        high = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        image = Image.fromarray(high.astype(np.uint8))
    if image.mode not in ("L", "RGB"):  # a palette must be looked up before it can be averaged
        image = image.convert("RGB")
    image.thumbnail((max_side, max_side), FILTER, reducing_gap=REDUCING_GAP)
    if exif:
        turned = exif.get(ORIENTATION, 1)
        image.getexif()[ORIENTATION] = turned  # conversions may have dropped it
        image = ImageOps.exif_transpose(image)
    return image.convert("RGB")


def _encode(image: Image.Image, quality: int) -> bytes:
    # Optimised Huffman tables would save 2 to 3% of the bytes and make encoding 2.5 times as slow.
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # whose own words are the address of a buffer
        return "no image that Pillow knows"
    return f"{type(error).__name__}: {error}"
