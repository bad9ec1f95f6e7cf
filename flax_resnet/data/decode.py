"""TensorFlow: from the bytes of one image to its pixels at the network's size.

Only the crop of a JPEG is decoded. Everything is a graph of TensorFlow operations, so it runs on tf.data's
threads without Python.
"""

import io
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from PIL import Image

from flax_resnet.data.data_section import Data
from flax_resnet.data.records import as_bmp

# An upright image is the stored one transposed (or not), then its rows, then its columns reversed (or not).
# Row n is EXIF's orientation n (Exif 2.3, tag 0x0112); 0 is not said, as 1.
ORIENTATIONS = np.array(
    [
        # transposed, rows reversed, columns reversed
        (0, 0, 0), (0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 1), (1, 1, 0),
    ],
    bool,
)  # fmt: skip
# Each interpolation's filter in TensorFlow, and its reach in pixels of the coarser grid.
KERNELS = {"bilinear": ("triangle", 1), "bicubic": ("keyscubic", 2)}
DCT = {"accurate": "INTEGER_ACCURATE", "fast": "INTEGER_FAST"}
RATIOS = (1, 2, 4, 8)  # at which libjpeg decodes to a smaller size


def training_pixels(
    encoded: tf.Tensor, config: Data, *, seed: tf.Tensor, orientation: tf.Tensor | None = None
) -> tf.Tensor:
    """Decodes the training crop of one image and resizes it.

    Args:
      encoded: string scalar; an image that is `decodable`.
      config: the data section.
      seed: int64 [2]; the same seed gives the same random crop.
      orientation: int32 scalar, EXIF's number from 1 to 8, or 0 where none is said; None takes every image
        as it is stored.

    Returns:
      uint8 [image_size, image_size, 3].
    """
    if config.train_crop != "random_resized":
        return evaluation_pixels(encoded, config, crop=config.train_crop, orientation=orientation)

    def box(shape: tf.Tensor) -> tf.Tensor:
        return random_window(shape, config.crop_area, config.crop_aspect, seed)

    least = config.image_size if config.reduced_decode else 0
    crop = _decoded(encoded, box, orientation, dct=DCT[config.dct], least=least)
    # tf.image.resize antialiases at half the speed (835 to 1,797 images/s, 500x375 to 224 px): below a factor of
    # two there is little to gain.
    resized = _resized(crop, config, antialias_above=0.0 if config.train_antialias else 2.0)
    return tf.ensure_shape(resized, [config.image_size, config.image_size, 3])


def evaluation_pixels(
    encoded: tf.Tensor, config: Data, *, crop: str = "", orientation: tf.Tensor | None = None
) -> tf.Tensor:
    """Decodes one image as it is evaluated: a pure function of the image.

    "center" is torchvision's: the short side resized to floor(image_size / eval_crop_fraction), antialiased,
    then the centre cut; made in one pass over the only pixels that reach into it. "resize" takes the whole
    image. `crop` stands for `config.eval_crop`; other Args and Returns are those of `training_pixels`.
    """
    size = config.image_size
    if (crop or config.eval_crop) == "resize":
        # The accurate transform is what Pillow uses, so predict() sees the same pixels.
        image = _decoded(encoded, _whole, orientation)
        fits = tf.reduce_all(tf.shape(image)[:2] == size)
        pixels = tf.cond(fits, lambda: image, lambda: _resized(image, config, antialias_above=0.0))
        return tf.ensure_shape(pixels, [size, size, 3])
    kernel, reach = KERNELS[config.interpolation]

    def box(shape: tf.Tensor) -> tf.Tensor:
        scale, first = center_window(shape, size, config.eval_crop_fraction)
        margin = tf.math.ceil(reach / tf.minimum(scale, 1.0)) + 1
        low = tf.maximum(tf.floor(first / scale - margin), 0)
        high = tf.math.ceil((first + size) / scale + margin)
        high = tf.minimum(high, tf.cast(shape, tf.float32))
        return tf.cast(tf.concat([low, high - low], axis=0), tf.int32)

    pixels, shape, window = _decoded(encoded, box, orientation, located=True)
    scale, first = center_window(shape, size, config.eval_crop_fraction)
    placed = tf.raw_ops.ScaleAndTranslate(
        images=pixels[None],
        size=[size, size],
        scale=scale,
        translation=tf.cast(window[:2], tf.float32) * scale - first,
        kernel_type=kernel,
        antialias=True,
    )
    return tf.ensure_shape(_to_uint8(placed[0], config.interpolation), [size, size, 3])


def decodable(image: bytes) -> bytes:
    """Returns an encoded image as it is, or as BMP where TensorFlow (2.21) reads it otherwise than Pillow.

    That is BMP with a palette (wrong colours), GIF with transparency (other colours), WebP with alpha or
    several frames (an error). What Pillow cannot read either is left as it is.
    """
    odd = (
        image[:3] == b"GIF"
        or (image[:2] == b"BM" and image[28:29] not in (b"\x18", b"\x20"))  # bits per pixel
        or (image[8:12] == b"WEBP" and image[12:16] != b"VP8 ")
    )
    if not odd:
        return image
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return as_bmp(opened.convert("RGB"))
    except Exception:  # damaged files raise many types; decoding will fail, and name the file
        return image


def center_window(shape: tf.Tensor, size: int, fraction: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Places torchvision's resize of the short side and centre crop.

    Args:
      shape: int32 [2], height and width of the image.
      size: side of the crop.
      fraction: of the resized short side, which is floor(size / fraction).

    Returns:
      The scale, and the first row and column of the crop in the resized image, each float32 [2].
    """
    short = int(size / fraction + 1e-6)
    least = tf.reduce_min(shape)
    resized = tf.cast(short * shape // least, tf.float32)  # truncates the long side, as torchvision
    return resized / tf.cast(shape, tf.float32), tf.round((resized - size) / 2)


def random_window(
    shape: tf.Tensor, area: tuple[float, float], aspect: tuple[float, float], seed: tf.Tensor
) -> tf.Tensor:
    """Draws torchvision's RandomResizedCrop: ten tries, then the largest centred box of allowed aspect.

    Args:
      shape: int32 [2], height and width.
      area: smallest and largest share of the image's area.
      aspect: smallest and largest width / height, drawn evenly on a log scale.
      seed: int64 [2]; the same seed gives the same window.

    Returns:
      int32 [4]: top, left, height, width.

    Source: Szegedy et al. 2015, "Going deeper with convolutions", section 6.
    """
    height, width = tf.cast(shape[0], tf.float32), tf.cast(shape[1], tf.float32)
    draws = tf.random.stateless_uniform([4, 10], seed)
    target = height * width * (area[0] + draws[0] * (area[1] - area[0]))
    low, high = np.log(aspect[0]), np.log(aspect[1])
    ratio = tf.exp(low + draws[1] * (high - low))
    heights, widths = tf.round(tf.sqrt(target / ratio)), tf.round(tf.sqrt(target * ratio))
    fits = (heights >= 1) & (widths >= 1) & (heights <= height) & (widths <= width)

    def drawn() -> tf.Tensor:
        first = tf.argmax(tf.cast(fits, tf.int32))
        h, w = heights[first], widths[first]
        top = tf.floor(draws[2][first] * (height - h + 1))
        left = tf.floor(draws[3][first] * (width - w + 1))
        return tf.cast(tf.stack([top, left, h, w]), tf.int32)

    def fallback() -> tf.Tensor:
        h = tf.minimum(height, tf.round(width / aspect[0]))
        w = tf.minimum(width, tf.round(height * aspect[1]))
        top, left = (height - h) // 2, (width - w) // 2
        return tf.cast(tf.stack([top, left, h, w]), tf.int32)

    return tf.cond(tf.reduce_any(fits), drawn, fallback)


def _whole(shape: tf.Tensor) -> tf.Tensor:
    return tf.concat([[0, 0], shape], axis=0)


def _decoded(
    encoded: tf.Tensor,
    box: Callable[[tf.Tensor], tf.Tensor],
    orientation: tf.Tensor | None,
    *,
    dct: str = "INTEGER_ACCURATE",
    least: int = 0,
    located: bool = False,
) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decodes the box (of a shape: top, left, height, width) of an upright image.

    A box of at least twice, four or eight times `least` is decoded to a half, a quarter or an eighth.

    Returns:
      uint8 [h, w, 3]; if `located`, also the image's upright shape and the box, int32 [2] and [4].
    """
    turned = None if orientation is None else tf.gather(ORIENTATIONS, orientation)

    def upright(shape: tf.Tensor) -> tf.Tensor:
        return shape if turned is None else tf.where(turned[0], shape[::-1], shape)

    def stored(window: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
        """Where the window of the upright image lies in the stored one."""
        if turned is None:
            return window
        corner, extent = window[:2], window[2:]
        corner = tf.where(turned[1:], shape - corner - extent, corner)
        window = tf.stack([corner, extent])
        return tf.reshape(tf.where(turned[0], window[:, ::-1], window), [4])

    def jpeg() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        shape = upright(tf.io.extract_jpeg_shape(encoded)[:2])
        window = box(shape)
        source = stored(window, shape)

        def at(ratio: int) -> Callable[[], tf.Tensor]:
            return lambda: tf.io.decode_and_crop_jpeg(
                encoded, source // ratio, channels=3, ratio=ratio, dct_method=dct
            )

        if not least:
            return at(1)(), shape, window
        times = tf.reduce_min(window[2:]) // least
        branch = sum(tf.cast(times >= ratio, tf.int32) for ratio in RATIOS[1:])
        return tf.switch_case(branch, [at(ratio) for ratio in RATIOS]), shape, window

    def other() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        shape = upright(tf.shape(image)[:2])
        window = box(shape)
        top, left, height, width = tf.unstack(stored(window, shape))
        return image[top : top + height, left : left + width], shape, window

    image, shape, window = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
    if turned is not None:

        def turn() -> tf.Tensor:
            flipped = tf.cond(turned[0], lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
            return tf.reverse(flipped, tf.cast(tf.where(turned[1:])[:, 0], tf.int32))

        image = tf.cond(tf.reduce_any(turned), turn, lambda: image)
    image.set_shape([None, None, 3])
    return (image, shape, window) if located else image


def _resized(image: tf.Tensor, config: Data, *, antialias_above: float) -> tf.Tensor:
    """Resizes to the network's size, antialiased where an image is larger by a factor a side or more."""
    size, method = config.image_size, config.interpolation

    def scaled(antialias: bool) -> tf.Tensor:
        return _to_uint8(tf.image.resize(image, [size, size], method, antialias=antialias), method)

    much = tf.reduce_prod(tf.shape(image)[:2]) >= int((antialias_above * size) ** 2)
    return tf.cond(much, lambda: scaled(True), lambda: scaled(False))


def _to_uint8(image: tf.Tensor, method: str) -> tf.Tensor:
    if method != "bilinear":  # whose filter has negative lobes
        image = tf.clip_by_value(image, 0, 255)
    return tf.cast(tf.round(image), tf.uint8)
