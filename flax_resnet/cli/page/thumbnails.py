"""Small images inside a page, as data URIs: images as the network sees them, and heat maps over them."""

import base64
import io

import numpy as np
from PIL import Image

SIDE = 176  # of a thumbnail, in pixels
TINY = 64  # images of at most this side are kept as they are, and the page enlarges their pixels
QUALITIES = (80, 60, 40, 20)  # of JPEG: the first one that keeps to the limit, or the last one
LARGEST = 12_000  # bytes of a JPEG; photographs take 5,000, noise more
STRENGTH = 0.6  # opacity of the hottest colour


def thumbnail(pixels: np.ndarray) -> str:
    """Return an image, uint8 [S, S, 3], as a data URI of at most `SIDE` pixels."""
    image = Image.fromarray(pixels)
    if max(image.size) <= TINY:
        return _uri(image, "PNG")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return _uri(image, "JPEG")


def heat_thumbnail(pixels: np.ndarray, heat: np.ndarray) -> str:
    """Return an image in grey under its heat map as a data URI.

    Args:
      pixels: uint8 [S, S, 3].
      heat: float32 [S, S], from 0 to 1. Hotter parts are drawn in stronger and redder colours.
    """
    from matplotlib import colormaps

    tiny = max(pixels.shape[:2]) <= TINY
    resample = Image.Resampling.NEAREST if tiny else Image.Resampling.LANCZOS
    grey = np.asarray(
        Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), resample), np.float32
    )
    hot = Image.fromarray(heat.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    values = np.clip(np.asarray(hot), 0, 1)[..., None]
    colors = 255 * colormaps["turbo"](0.25 + 0.7 * values[..., 0])[..., :3]
    opacity = STRENGTH * np.sqrt(values)
    mixed = (1 - opacity) * grey[..., None] + opacity * colors
    return _uri(Image.fromarray(mixed.round().astype(np.uint8)), "JPEG")


def _uri(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, kind, quality=quality, optimize=True)
        if kind == "PNG" or buffer.tell() <= LARGEST:
            break
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
