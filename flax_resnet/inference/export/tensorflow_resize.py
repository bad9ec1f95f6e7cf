"""Resize and crop images of any size inside a TensorFlow model, in Pillow's arithmetic.

Pillow mostly resizes the rows, rounds to bytes, and then resizes the columns. A pass is a matrix product here: an
output pixel is a weighted mean of the input pixels in reach of the filter. The filter is widened for a smaller
output, so that every input pixel counts.

Source: Pillow's Resample.c (precompute_coeffs).
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from flax_resnet.data.data_section import Data


class Filter(NamedTuple):
    """An interpolation filter.

    Attributes:
      reach: the distance, in pixels, from which on the weights are 0.
      weight: distance -> weight.
    """

    reach: float
    weight: Callable[[tf.Tensor], tf.Tensor]


def _bicubic(distance: tf.Tensor) -> tf.Tensor:
    """Keys 1981, "Cubic convolution interpolation for digital image processing", equation 15: a = -0.5."""
    x = tf.abs(distance)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((x - 5) * x + 8) * x * -0.5 + 2
    return tf.where(x < 1, near, tf.where(x < 2, far, 0.0))


FILTERS = {
    "bilinear": Filter(1.0, lambda distance: tf.maximum(1 - tf.abs(distance), 0)),
    "bicubic": Filter(2.0, _bicubic),
}


def resized(images: tf.Tensor, config: Data) -> tf.Tensor:
    """Resize and crop uint8 [N, H, W, 3] to [N, S, S, 3], as `data.images.prepare_image`.

    A few pixels may differ by one level: the weights are float32, and Pillow's have 22 bits after the point. For
    some tall images, Pillow 13 begins with the columns; there, a quarter of the pixels may differ by one level.
    """
    size = config.image_size
    shape = tf.shape(images)
    sides = [tf.cast(shape[axis], tf.int64) for axis in (1, 2)]
    if config.eval_crop == "resize":
        targets = [tf.constant(size, tf.int64)] * 2
    else:
        short, least = int(size / config.eval_crop_fraction + 1e-6), tf.minimum(*sides)
        targets = [short * side // least for side in sides]
    rows, columns = (
        _weights(side, target, size, FILTERS[config.interpolation])
        for side, target in zip(sides, targets, strict=True)
    )
    pixels = tf.cast(images, tf.float32)
    pixels = _bytes(tf.einsum("nhwc,sw->nhsc", pixels, columns))
    pixels = _bytes(tf.einsum("nhwc,sh->nswc", pixels, rows))
    return tf.cast(pixels, tf.uint8)


def _bytes(pixels: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(tf.floor(pixels + 0.5), 0.0, 255.0)


def _weights(side: tf.Tensor, target: tf.Tensor, size: int, kind: Filter) -> tf.Tensor:
    """Return the weights [size, side] of the central `size` pixels of an axis that is resized to `target` pixels.

    They are computed in float64: in float32, the positions in an image of 4,000 pixels would be wrong by 2e-4.
    """
    extra = target - size
    half = extra // 2
    start = half + (extra % 2) * (half % 2)  # half a pixel is rounded to an even number
    scale = tf.cast(side, tf.float64) / tf.cast(target, tf.float64)
    widened = tf.maximum(scale, 1.0)
    centre = (tf.cast(tf.range(size, dtype=tf.int64) + start, tf.float64) + 0.5) * scale
    inputs = tf.cast(tf.range(side), tf.float64)
    first, last = (tf.floor(centre + sign * kind.reach * widened + 0.5) for sign in (-1, 1))
    inside = (inputs >= first[:, None]) & (inputs < last[:, None])
    weights = kind.weight((inputs - centre[:, None] + 0.5) / widened)
    weights = tf.where(inside, weights, 0.0)
    return tf.cast(weights / tf.reduce_sum(weights, axis=1, keepdims=True), tf.float32)
