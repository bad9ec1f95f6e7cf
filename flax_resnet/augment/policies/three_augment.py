"""3-Augment: each image turns grey, is solarised or is blurred; then its colours are jittered."""

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.augment import color
from flax_resnet.augment.augment_section import Augment, PolicyRow
from flax_resnet.augment.rng import below, row_keys, uniform

Array = jax.Array

DEVIATIONS = np.linspace(0.1, 2.0, 256)  # standard deviations of the blur, pixels
RADIUS = 8  # pixels: four of the largest standard deviations
JITTER = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.0}


def _weights() -> np.ndarray:
    """Return the weights of each blur, as integers with the sum 2^14: int32 [256, 2 RADIUS + 1].

    Sums of integers are exact. The result does not depend on what XLA fuses, and so not on the number of devices.
    """
    offsets = np.arange(-RADIUS, RADIUS + 1)
    bells = np.exp(-((offsets / DEVIATIONS[:, None]) ** 2) / 2)
    weights = np.round(bells / bells.sum(1, keepdims=True) * 2**14).astype(np.int32)
    weights[:, RADIUS] += 2**14 - weights.sum(1)
    return weights


WEIGHTS = _weights()


def blur(images: Array, number: Array) -> Array:
    """Blur each image of uint8 [N, H, W, C] by a Gaussian of standard deviation `DEVIATIONS[number]`, int32 [N].

    Pixels at the edges are repeated outwards.
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

    rows = (along(2, images.astype(jnp.int32)) + 2**5) >> 6  # 2^8 times a level
    return ((along(1, rows) + 2**21) >> 22).astype(jnp.uint8)


def three_augment(key: Array, images: Array, section: Augment) -> Array:
    """Apply one of three operations to each image of uint8 [N, H, W, 3], each with probability 1/3, then jitter.

    The operations are greyscale, solarisation (levels from 128 on are inverted) and a Gaussian blur with a standard
    deviation of 0.1 to 2 pixels. The jitter of brightness, contrast and saturation is that of `augment.brightness`
    and so on, at 0.3.

    Source: Touvron et al. 2022, "DeiT III: Revenge of the ViT", section 3.2. Its code blurs by Pillow, which
    approximates the Gaussian by boxes.
    """
    del section  # it has no settings
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
