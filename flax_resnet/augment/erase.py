"""Cutout and random erasing, of normalised images."""

import jax
import jax.numpy as jnp

from flax_resnet.augment.geometry import inside
from flax_resnet.augment.streams import row_keys

Array = jax.Array

ATTEMPTS = 10


def cutout(key: Array, images: Array, side: int) -> Array:
    """Sets a square to zero, the mean; its centre is any pixel, so that borders may clip it.

    Args:
      key: the operation's key.
      images: float32 [N, H, W, C].
      side: of the square, in pixels.

    Returns:
      As `images`.

    Source: DeVries and Taylor 2017, "Improved regularization of CNNs with cutout", section 3.
    """
    height, width = shape = images.shape[1:3]

    def draw(key: Array) -> Array:
        return jax.random.randint(key, (2,), 0, jnp.array([height, width]))

    top, left = jax.vmap(draw)(row_keys(key, len(images))).T - side // 2
    length = jnp.full_like(top, side)
    return jnp.where(inside(top, left, length, length, shape), 0, images)


def erase(
    key: Array,
    images: Array,
    probability: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
    fill: str = "zero",
) -> Array:
    """Replaces a rectangle that lies within the image.

    Up to ten rectangles are drawn for an image, and the first taken that is smaller than the image both ways;
    if none is, the image stays as it is.

    Args:
      key: the operation's key.
      images: float32 [N, H, W, C].
      probability: share of the images that are erased.
      area: smallest and largest share of the image's area; uniform.
      aspect: smallest and largest height over width; its logarithm is uniform.
      fill: "zero" (the mean), or "noise", normal and of unit variance for every value.

    Returns:
      As `images`.

    Source: Zhong et al. 2020, "Random erasing data augmentation", algorithm 1; torchvision's RandomErasing.
    """
    box_key, noise_key = jax.random.split(key)
    rows, shape = len(images), images.shape[1:3]
    box = jax.vmap(lambda key: rectangle(key, shape, probability, area, aspect))
    erased = inside(*box(row_keys(box_key, rows)), shape)
    filling = 0.0
    if fill == "noise":
        noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))
        filling = noise(row_keys(noise_key, rows))
    return jnp.where(erased, filling, images)


def rectangle(
    key: Array,
    shape: tuple[int, int],
    probability: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[Array, Array, Array, Array]:
    """Draws what `erase` erases of one image: top, left, height, width, int32; height 0 for nothing."""
    height, width = shape
    whether, area_key, aspect_key, top_key, left_key = jax.random.split(key, 5)
    areas = (
        height * width * jax.random.uniform(area_key, (ATTEMPTS,), minval=area[0], maxval=area[1])
    )
    low, high = jnp.log(jnp.array(aspect))
    aspects = jnp.exp(jax.random.uniform(aspect_key, (ATTEMPTS,), minval=low, maxval=high))
    heights = jnp.round(jnp.sqrt(areas * aspects)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas / aspects)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    tall, wide = heights[first], widths[first]
    top = jax.random.randint(top_key, (), 0, jnp.maximum(height - tall + 1, 1))
    left = jax.random.randint(left_key, (), 0, jnp.maximum(width - wide + 1, 1))
    erased = fits.any() & jax.random.bernoulli(whether, probability)
    return top, left, jnp.where(erased, tall, 0), wide
