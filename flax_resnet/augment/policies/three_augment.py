"""3-Augment: turn each image grey, solarise it or blur it; then jitter its colours."""

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.augment import color
from flax_resnet.augment.augment_section import Augment, PolicyRow
from flax_resnet.augment.rng import below, row_keys, uniform

Array = jax.Array

DEVIATIONS = np.linspace(0.1, 2.0, 256)  # standard deviations of the blur, in pixels
RADIUS = 8  # in pixels: four times the largest standard deviation
JITTER = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.0}


def _weights() -> np.ndarray:
    """Return the weights of each blur, as integers with the sum 2^14: int32 [256, 2 RADIUS + 1].

    Sums of integers are exact, so the result does not depend on how XLA fuses them or on the number of devices.
    """
    offsets = np.arange(-RADIUS, RADIUS + 1)
    bells = np.exp(-((offsets / DEVIATIONS[:, None]) ** 2) / 2)
    weights = np.round(bells / bells.sum(1, keepdims=True) * 2**14).astype(np.int32)
    weights[:, RADIUS] += 2**14 - weights.sum(1)
    return weights


WEIGHTS = _weights()


def blur(images: Array, number: Array) -> Array:
    """Blur each image by a Gaussian; pixels outside the image repeat those at its edges.

    Args:
      images: uint8 [N, H, W, C].
      number: index of each image's standard deviation in `DEVIATIONS`, int32 [N].

    Returns:
      An array like `images`.
    """
    weights = jnp.asarray(WEIGHTS)[number]

    def along(axis: int, values: Array) -> Array:
        size, sides = values.shape[axis], [(0, 0)] * 4
        sides[axis] = (RADIUS, RADIUS)
        padded = jnp.pad(values, sides, mode="edge")

        def add(tap: Array, total: Array) -> Array:
            part = jax.lax.dynamic_slice_in_dim(padded, tap, size, axis)
            return total + weights[:, tap][:, None, None, None] * part

        return jax.lax.fori_loop(0, 2 * RADIUS + 1, add, jnp.zeros_like(values))

    rows = (along(2, images.astype(jnp.int32)) + 2**5) >> 6  # fixed-point numbers: 2^8 is one level
    return ((along(1, rows) + 2**21) >> 22).astype(jnp.uint8)


def three_augment(key: Array, images: Array, section: Augment) -> Array:
    """Apply one of three operations to each image of uint8 [N, H, W, 3], each with probability 1/3, then jitter.

    The operations are greyscale, solarisation (which inverts levels of at least 128) and a Gaussian blur with a
    standard deviation of 0.1 to 2 pixels. The jitter is the one of `augment.brightness`, `augment.contrast` and
    `augment.saturation`, each with the value 0.3.

    Source: Touvron et al. 2022, "DeiT III: Revenge of the ViT", section 3.2. Its code blurs with Pillow, which
    approximates the Gaussian by box filters.
    """
    del section  # this policy has no settings
    choice_key, jitter_key = jax.random.split(key)
    kind, strength = uniform(row_keys(choice_key, len(images)), 2)
    kind = below(kind, 3)[:, None, None, None]
    grey = jnp.broadcast_to(color.grey(images).astype(jnp.uint8), images.shape)
    solarised = jnp.where(images >= 128, 255 - images, images)
    blurred = blur(images, below(strength, len(DEVIATIONS)))
    chosen = jnp.where(kind == 0, grey, jnp.where(kind == 1, solarised, blurred))
    return color.jitter(jitter_key, chosen, JITTER)


ROWS = (
    PolicyRow(
        name="three_augment",
        help="greyscale, solarisation or blur of each image, then colour jitter (DeiT III)",
        apply=three_augment,
    ),
)
