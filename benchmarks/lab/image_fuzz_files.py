"""The files of `image_fuzz`: small photographs in every format and mode, and their mutations."""

import functools
import io
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image

SIDE = 48  # pixels
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="8"/>'

Files = dict[str, list[tuple[str, bytes]]]


class Mutated(NamedTuple):
    """A mutated file.

    Attributes:
      format: one of `FORMATS`.
      name: the original file.
      mutation: what was done to it.
      encoded: the file's bytes.
    """

    format: str
    name: str
    mutation: str
    encoded: bytes

    @classmethod
    def numbered(cls, number: int, seed: int, files: Files) -> Self:
        """Return a file as a function of its number and the seed."""
        draw = np.random.default_rng([seed, number])
        kind = FORMATS[number % len(FORMATS)]
        name, encoded = files[kind][draw.integers(len(files[kind]))]
        mutation = draw.choice(list(MUTATIONS), p=SHARES)
        other = files[kind][draw.integers(len(files[kind]))][1]
        changed = MUTATIONS[mutation](draw, encoded, other)
        return cls(kind, name, str(mutation), changed)


def _flip_bytes(draw: np.random.Generator, encoded: bytes, other: bytes) -> bytes:
    changed = np.frombuffer(encoded, np.uint8).copy()
    at = draw.integers(len(changed), size=draw.integers(1, 9))
    changed[at] = draw.integers(256, size=len(at))
    return changed.tobytes()


def _flip_bit(draw: np.random.Generator, encoded: bytes, other: bytes) -> bytes:
    changed = np.frombuffer(encoded, np.uint8).copy()
    changed[draw.integers(len(changed))] ^= 1 << draw.integers(8)
    return changed.tobytes()


def _flip_header(draw: np.random.Generator, encoded: bytes, other: bytes) -> bytes:
    changed = np.frombuffer(encoded, np.uint8).copy()
    changed[draw.integers(2, min(len(changed), 160))] = draw.integers(256)
    return changed.tobytes()


def _cut(draw: np.random.Generator, encoded: bytes, other: bytes) -> bytes:
    return encoded[: draw.integers(len(encoded))]


def _cut_end(draw: np.random.Generator, encoded: bytes, other: bytes) -> bytes:
    return encoded[: -draw.integers(1, 20)]


def _splice(draw: np.random.Generator, encoded: bytes, other: bytes) -> bytes:
    return encoded[: draw.integers(len(encoded))] + other[draw.integers(len(other)) :]


def _repeat(draw: np.random.Generator, encoded: bytes, other: bytes) -> bytes:
    start, stop = np.sort(draw.integers(len(encoded), size=2))
    return encoded[:stop] + encoded[start:]


def _remove(draw: np.random.Generator, encoded: bytes, other: bytes) -> bytes:
    start = draw.integers(len(encoded))
    return encoded[:start] + encoded[start + draw.integers(1, 30) :]


def _clear(draw: np.random.Generator, encoded: bytes, other: bytes) -> bytes:
    start, length = draw.integers(len(encoded)), draw.integers(1, 60)
    middle = bytes(len(encoded[start : start + length]))
    return encoded[:start] + middle + encoded[start + length :]


def _append(draw: np.random.Generator, encoded: bytes, other: bytes) -> bytes:
    return encoded + draw.bytes(int(draw.integers(1, 200)))


def _keep(draw: np.random.Generator, encoded: bytes, other: bytes) -> bytes:
    return encoded


MUTATIONS: dict[str, Callable[[np.random.Generator, bytes, bytes], bytes]] = {
    "bytes": _flip_bytes,
    "bit": _flip_bit,
    "header byte": _flip_header,
    "cut": _cut,
    "end cut": _cut_end,
    "splice": _splice,
    "repeat": _repeat,
    "remove": _remove,
    "clear": _clear,
    "append": _append,
    "none": _keep,
}
SHARES = np.array([4, 4, 3, 2, 1, 2, 1, 1, 1, 0.5, 0.5]) / 20


@functools.cache
def originals() -> Files:
    """Return {format: [(name, encoded image)]}: crops of scikit-learn's photographs."""
    from sklearn.datasets import load_sample_images

    files: Files = {kind: [] for kind in FORMATS}

    def add(name: str, image: Image.Image, kind: str, **options: Any) -> None:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files[kind].append((name, buffer.getvalue()))

    turned = Image.Exif()
    turned[0x0112] = 6
    for number, pixels in enumerate(load_sample_images().images):
        top, left = 150 + 60 * number, 220
        image = Image.fromarray(pixels[top : top + SIDE, left : left + SIDE])
        wide = image.crop((0, 0, SIDE, 33))
        _add_jpegs(functools.partial(add, kind="JPEG"), image, wide, turned)
        _add_pngs(functools.partial(add, kind="PNG"), image, wide, turned)
        _add_others(add, image, wide, turned)
    return files


def _add_jpegs(
    add: Callable[..., None], image: Image.Image, wide: Image.Image, turned: Image.Exif
) -> None:
    for quality in (30, 75, 95):
        add(f"quality {quality}", image, quality=quality)
    add("4:4:4", image, subsampling=0)
    add("progressive", image, progressive=True)
    add("restarts", image, restart_marker_blocks=2)
    add("L", image.convert("L"))
    add("CMYK", image.convert("CMYK"))
    add("wide", wide)
    add("EXIF", wide, exif=turned)
    add("XMP", wide, xmp=XMP)


def _add_pngs(
    add: Callable[..., None], image: Image.Image, wide: Image.Image, turned: Image.Exif
) -> None:
    add("RGB", image)
    add("L", image.convert("L"))
    add("1", image.convert("1"))
    add("LA", image.convert("LA"))
    add("RGBA", image.convert("RGBA"))
    add("RGB transparent", image, transparency=(9, 9, 9))
    add("P", image.quantize(200))
    add("P 2 bits transparent", image.quantize(4), bits=2, transparency=b"\0\x80\xff\xff")
    add("I;16", Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257))
    add("frames", image, save_all=True, append_images=[image.rotate(90)])
    add("wide", wide)
    add("EXIF", wide, exif=turned)


def _add_others(
    add: Callable[..., None], image: Image.Image, wide: Image.Image, turned: Image.Exif
) -> None:
    frames = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    clear = image.copy()
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    for quality in (30, 90):
        add(f"quality {quality}", image, "WEBP", quality=quality)
    add("lossless", image, "WEBP", lossless=True)
    add("alpha", clear, "WEBP")
    add("frames", image, "WEBP", **frames)
    add("wide", wide, "WEBP")
    add("EXIF", wide, "WEBP", exif=turned)
    for colours in (2, 16, 256):
        add(f"{colours} colours", image.quantize(colours), "GIF")
    add("transparent", image.quantize(64), "GIF", transparency=5)
    add("frames", image.quantize(64), "GIF", save_all=True, append_images=[image.rotate(90)])
    add("wide", wide.quantize(64), "GIF")
    for mode in ("RGB", "RGBA", "L", "1", "P"):
        add(mode, image.convert(mode), "BMP")
    add("wide", wide, "BMP")
