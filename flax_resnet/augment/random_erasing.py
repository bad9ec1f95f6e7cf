"""Cutout and random erasing on normalised images."""

import math

import jax
import jax.numpy as jnp

from flax_resnet.augment.geometry import inside
from flax_resnet.augment.rng import below, row_keys, uniform

Array = jax.Array

ATTEMPTS = 10


def cutout(key: Array, images: Array, side: int) -> Array:
    """Set a square to zero, which is the mean. Any pixel can be its centre, so borders may clip the square.

    Args:
      key: the operation's key.
      images: float32 [N, H, W, C].
      side: side of the square, in pixels.

    Returns:
      An array like `images`.

    Source: DeVries and Taylor 2017, "Improved regularization of CNNs with cutout", section 3.
    """
    height, width = images.shape[1:3]
    row, column = uniform(row_keys(key, len(images)), 2)
    top, left = below(row, height) - side // 2, below(column, width) - side // 2
    length = jnp.full_like(top, side)
    return jnp.where(inside(top, left, length, length, (height, width)), 0, images)


def erase(
    key: Array,
    images: Array,
    probability: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
    fill: str = "zero",
) -> Array:
    """Replace a random rectangle inside the image.

    Ten rectangles are drawn for each image. The first one with less height and width than the image is used. If
    there is none, the image is not changed.

    Args:
      key: the operation's key.
      images: float32 [N, H, W, C].
      probability: share of the images that are erased.
      area: smallest and largest area as a share of the image; drawn uniformly.
      aspect: smallest and largest height / width; the logarithm is drawn uniformly.
      fill: "zero" (the mean), or "noise" (standard normal, drawn for each value).

    Returns:
      An array like `images`.

    Source: Zhong et al. 2020, "Random erasing data augmentation", algorithm 1; torchvision's RandomErasing.
    """
    box_key, noise_key = jax.random.split(key)
    height, width = images.shape[1:3]
    box = rectangles(box_key, len(images), (height, width), probability, area, aspect)
    erased = inside(*box, (height, width))
    filling: Array | float = 0.0
    if fill == "noise":
        noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))
        filling = noise(row_keys(noise_key, len(images)))
    return jnp.where(erased, filling, images)


def rectangles(
    key: Array,
    rows: int,
    shape: tuple[int, int],
    probability: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[Array, Array, Array, Array]:
    """Draw the rectangles for `erase`: top, left, height, width, each int32 [N]; height 0 erases nothing."""
    height, width = shape
    chance, top, left, *attempts = uniform(row_keys(key, rows), 3 + 2 * ATTEMPTS)
    areas, aspects = jnp.stack(attempts[:ATTEMPTS]), jnp.stack(attempts[ATTEMPTS:])
    low, high = math.log(aspect[0]), math.log(aspect[1])
    areas = height * width * (area[0] + (area[1] - area[0]) * areas)
    aspects = jnp.exp(low + (high - low) * aspects)
    heights = jnp.round(jnp.sqrt(areas * aspects)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas / aspects)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits, axis=0)[None]
    tall, wide = (jnp.take_along_axis(x, first, axis=0)[0] for x in (heights, widths))
    erased = fits.any(axis=0) & (chance < probability)
    return (
        below(top, height - tall + 1),
        below(left, width - wide + 1),
        jnp.where(erased, tall, 0),
        wide,
    )
