"""Decide which encoded images TensorFlow decodes like Pillow, and convert the others to BMP."""

import struct
import zlib

from PIL import Image

from flax_resnet.data.images import upright
from flax_resnet.data.records import as_bmp
from flax_resnet.errors import DataError

# Segments of a JPEG that do not change how its pixels are decoded, or that TensorFlow reads like Pillow: tables,
# restart interval, application data and comments.
JPEG_SEGMENTS = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}
PNG_START = b"\x89PNG\r\n\x1a\n"
# Chunks that do not change the pixels. A chunk of transparency or of an animation is not among them.
PNG_CHUNKS = frozenset(
    b"IHDR IDAT IEND cHRM gAMA iCCP sBIT sRGB bKGD hIST pHYs tIME iTXt tEXt zTXt eXIf cICP".split()
)


def decodable(image: bytes) -> bytes:
    """Return an encoded image unchanged if TensorFlow (2.21) decodes it like Pillow, and as BMP otherwise.

    TensorFlow decodes complete grey and colour JPEGs, PNGs of 8 bits with correct checksums, lossy WebP without
    alpha, and BMPs of 24 bits. Pillow decodes the rest, because TensorFlow gives other colours or an error: BMP
    with a palette or other masks, GIF, WebP with alpha or frames, CMYK, rare kinds of PNG, and corrupted files.

    Returns:
      The encoded image. If Pillow cannot read it either, the result is empty, which TensorFlow refuses.
    """
    if _is_plain(image):
        return image
    try:
        return as_bmp(upright(image, exif=False, name="image"))
    except DataError:  # found by `pipeline.find_bad`, which knows the file's name
        return b""


def _is_plain(image: bytes) -> bool:
    """Return whether TensorFlow decodes an image exactly like Pillow, as far as its headers and checksums tell."""
    if image.startswith(b"\xff\xd8\xff"):
        return _is_plain_jpeg(image)
    if image.startswith(PNG_START):
        return _is_plain_png(image)
    if image.startswith(b"BM") and len(image) >= 54:
        offset, header, width, height, planes, bits, packing = struct.unpack_from(
            "<10xIIiiHHI", image
        )
        row = (3 * width + 3) // 4 * 4
        kind = (offset, header, planes, bits, packing)
        complete = width > 0 and height > 0 and len(image) == 54 + row * height
        return kind == (54, 40, 1, 24, 0) and complete and _may_be_read(width, height)
    if image[8:16] == b"WEBPVP8 ":
        whole, chunk = (int.from_bytes(image[at : at + 4], "little") for at in (4, 16))
        return len(image) == whole + 8 == chunk + chunk % 2 + 20
    return False


def _is_plain_jpeg(image: bytes) -> bool:
    """Walk over the segments before the pixels; the end of the image must follow.

    Source: ITU-T T.81, annex B.
    """
    at, known = 2, False
    while image[at : at + 1] == b"\xff" and at + 4 <= len(image):
        marker, length = image[at + 1], int.from_bytes(image[at + 2 : at + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2):  # Huffman coding, sequential or progressive
            if at + 10 > len(image):
                return False
            bits, height, width, channels = struct.unpack_from(">BHHB", image, at + 4)
            if known or bits != 8 or channels not in (1, 3) or not _may_be_read(width, height):
                return False
            known = True
        elif marker == 0xDA:  # the pixels
            return known and image.rfind(b"\xff\xd9", at) > 0
        elif marker not in JPEG_SEGMENTS or length < 2:
            return False
        at += 2 + length
    return False


def _is_plain_png(image: bytes) -> bool:
    """Walk over the chunks and verify their checksums.

    Source: Portable Network Graphics, third edition, section 5.
    """
    at = 8
    names: list[bytes] = []
    while at + 12 <= len(image):
        length, name = struct.unpack_from(">I4s", image, at)
        end = at + 12 + length
        checksum = int.from_bytes(image[end - 4 : end], "big")
        if end > len(image) or zlib.crc32(image[at + 4 : end - 4]) != checksum:
            return False
        if name != b"IDAT" or names[-1:] != [name]:  # the pixels are a row of such chunks
            names.append(name)
        at = end
    ordered = names[:1] == [b"IHDR"] and names[-1] == b"IEND" and names.count(b"IDAT") == 1
    if at != len(image) or not ordered or not PNG_CHUNKS.issuperset(names):
        return False
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", image, 16)
    # Colour types: grey, RGB, grey with alpha, RGB with alpha.
    return (bits, interlaced) == (8, 0) and colour in (0, 2, 4, 6) and _may_be_read(width, height)


def _may_be_read(width: int, height: int) -> bool:
    """Return whether the image is not empty and not above Pillow's limit, which protects the memory."""
    return 0 < width * height <= 2 * (Image.MAX_IMAGE_PIXELS or float("inf"))
