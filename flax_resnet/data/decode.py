"""Decode, crop and resize one image with TensorFlow, from its bytes to pixels at the network's size.

Only the crop of a JPEG is decoded. All functions on tensors build a graph of TensorFlow operations, which tf.data's
threads run without Python.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from flax_resnet.data.data_section import Data

# Three steps turn a stored image upright: transpose it, reverse its rows, reverse its columns. Row n has the flags
# of the steps for EXIF orientation n (Exif 2.3, tag 0x0112). Row 0 is for images without EXIF orientation.
ORIENTATIONS = np.array(
    [
        # transposed, rows reversed, columns reversed
        (0, 0, 0), (0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 1), (1, 1, 0),
    ],
    bool,
)  # fmt: skip
# TensorFlow's filter for each interpolation, and its radius in pixels of the coarser grid.
KERNELS = {"bilinear": ("triangle", 1), "bicubic": ("keyscubic", 2)}
DCT = {"accurate": "INTEGER_ACCURATE", "fast": "INTEGER_FAST"}
RATIOS = (1, 2, 4, 8)  # factors by which libjpeg can reduce an image while it decodes the image


def training_pixels(
    encoded: tf.Tensor, config: Data, *, seed: tf.Tensor, orientation: tf.Tensor | None = None
) -> tf.Tensor:
    """Decode the training crop of one image and resize it.

    Args:
      encoded: string scalar; an encoded image, as returned by `decodable.decodable`.
      config: the data section.
      seed: int64 [2]; the same seed gives the same random crop.
      orientation: int32 scalar, EXIF orientation from 1 to 8, or 0 if there is none; None to leave the image as
        stored.

    Returns:
      uint8 [image_size, image_size, 3].
    """
    if config.train_crop != "random_resized":
        return evaluation_pixels(encoded, config, crop=config.train_crop, orientation=orientation)

    def box(shape: tf.Tensor) -> tf.Tensor:
        return random_window(shape, config.crop_area, config.crop_aspect, seed)

    least = config.image_size if config.reduced_decode else 0
    crop = decode_window(encoded, box, orientation, dct=DCT[config.dct], least=least)
    # Antialiasing halves the speed of tf.image.resize (835 instead of 1,797 images/s, 500x375 to 224 px), and
    # changes little below a factor of two.
    resized = resize(crop, config, antialias_above=0.0 if config.train_antialias else 2.0)
    return tf.ensure_shape(resized, [config.image_size, config.image_size, 3])


def evaluation_pixels(
    encoded: tf.Tensor, config: Data, *, crop: str = "", orientation: tf.Tensor | None = None
) -> tf.Tensor:
    """Decode and resize one image for evaluation, without randomness.

    "center" equals torchvision: resize the short side to floor(image_size / eval_crop_fraction) with antialiasing,
    then crop the centre. One pass over the pixels that affect the crop does both. "resize" resizes the whole
    image. `crop` overrides `config.eval_crop`; the other arguments and the result are those of `training_pixels`.
    """
    size = config.image_size
    if (crop or config.eval_crop) == "resize":
        # predict() decodes with Pillow, which uses the accurate JPEG transform too, so it sees the same pixels.
        image = decode_window(encoded, _whole, orientation)
        fits = tf.reduce_all(tf.shape(image)[:2] == size)
        pixels = tf.cond(fits, lambda: image, lambda: resize(image, config, antialias_above=0.0))
        return tf.ensure_shape(pixels, [size, size, 3])
    kernel, reach = KERNELS[config.interpolation]

    def box(shape: tf.Tensor) -> tf.Tensor:
        scale, first = center_window(shape, size, config.eval_crop_fraction)
        margin = tf.math.ceil(reach / tf.minimum(scale, 1.0)) + 1
        low = tf.maximum(tf.floor(first / scale - margin), 0)
        high = tf.math.ceil((first + size) / scale + margin)
        high = tf.minimum(high, tf.cast(shape, tf.float32))
        return tf.cast(tf.concat([low, high - low], axis=0), tf.int32)

    pixels, shape, window = decode_window(encoded, box, orientation, located=True)
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


def center_window(shape: tf.Tensor, size: int, fraction: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Compute the scale and the crop window of torchvision's resize and centre crop.

    Args:
      shape: int32 [2], height and width of the image.
      size: side of the crop.
      fraction: side of the crop / resized short side; the resized short side is floor(size / fraction).

    Returns:
      The scale, and the first row and column of the crop in the resized image, each float32 [2].
    """
    short = int(size / fraction + 1e-6)
    least = tf.reduce_min(shape)
    # Truncates the long side like torchvision.
    resized = tf.cast(short * shape // least, tf.float32)
    return resized / tf.cast(shape, tf.float32), tf.round((resized - size) / 2)


def random_window(
    shape: tf.Tensor, area: tuple[float, float], aspect: tuple[float, float], seed: tf.Tensor
) -> tf.Tensor:
    """Draw the window of torchvision's RandomResizedCrop.

    Ten windows are drawn, and the first that fits is used. If none fits, the result is the largest centred window
    with an allowed aspect ratio.

    Args:
      shape: int32 [2], height and width.
      area: smallest and largest share of the image's area.
      aspect: smallest and largest width / height; the logarithm is drawn uniformly.
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


def decode_window(
    encoded: tf.Tensor,
    box: Callable[[tf.Tensor], tf.Tensor],
    orientation: tf.Tensor | None,
    *,
    dct: str = "INTEGER_ACCURATE",
    least: int = 0,
    located: bool = False,
) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decode a window of an upright image.

    Args:
      encoded: string scalar.
      box: function from the upright shape, int32 [2], to the window, int32 [4]: top, left, height, width.
      orientation: as in `training_pixels`.
      dct: TensorFlow's name of the inverse DCT.
      least: a window whose sides are at least 2, 4 or 8 times `least` is decoded at 1/2, 1/4 or 1/8 of its size; 0
        for full size.
      located: whether to return the shape and the window as well.

    Returns:
      uint8 [h, w, 3]; if `located`, also the image's upright shape and the window, int32 [2] and [4].
    """
    turned = None if orientation is None else tf.gather(ORIENTATIONS, orientation)

    def turned_shape(shape: tf.Tensor) -> tf.Tensor:
        return shape if turned is None else tf.where(turned[0], shape[::-1], shape)

    def stored(window: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
        """Return the window in the stored image for a window in the upright image."""
        if turned is None:
            return window
        corner, extent = window[:2], window[2:]
        corner = tf.where(turned[1:], shape - corner - extent, corner)
        window = tf.stack([corner, extent])
        return tf.reshape(tf.where(turned[0], window[:, ::-1], window), [4])

    def jpeg() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        shape = turned_shape(tf.io.extract_jpeg_shape(encoded)[:2])
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
        shape = turned_shape(tf.shape(image)[:2])
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


def resize(image: tf.Tensor, config: Data, *, antialias_above: float) -> tf.Tensor:
    """Resize to the network's size; antialias if the image is at least `antialias_above` times as large."""
    size, method = config.image_size, config.interpolation

    def scaled(antialias: bool) -> tf.Tensor:
        return _to_uint8(tf.image.resize(image, [size, size], method, antialias=antialias), method)

    much = tf.reduce_prod(tf.shape(image)[:2]) >= int((antialias_above * size) ** 2)
    return tf.cond(much, lambda: scaled(True), lambda: scaled(False))


def _to_uint8(image: tf.Tensor, method: str) -> tf.Tensor:
    if method != "bilinear":  # bicubic filters have negative lobes
        image = tf.clip_by_value(image, 0, 255)
    return tf.cast(tf.round(image), tf.uint8)
