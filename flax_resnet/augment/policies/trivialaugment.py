"""TrivialAugment (Wide): one random operation of random magnitude for each image."""

import jax
import jax.numpy as jnp

from flax_resnet.augment.augment_section import Augment, PolicyRow
from flax_resnet.augment.policy import Operation, Ranges, apply, choices, operations

Array = jax.Array


def ranges(height: int, width: int) -> Ranges:
    """Return the ranges of magnitudes, which do not depend on the size of the images."""
    del height, width
    positive = {"shear": 0.99, "across": 32, "down": 32, "degrees": 135, "amount": 0.99}
    return {
        "none": (0, 0),
        "threshold": (255, 0),
        "bits": (8, 2),
        **{name: (0, most) for name, most in positive.items()},
    }


def trivialaugment(key: Array, images: Array, section: Augment) -> Array:
    """Apply one random operation of random magnitude and sign to each image of uint8 [N, H, W, 3].

    Source: Müller and Hutter 2021, "TrivialAugment", section 3, table 5 (Wide); torchvision's implementation.
    """
    del section  # this policy has no settings
    height, width = images.shape[1:3]
    rows = operations(ranges(height, width), height, width)
    choice = choices(key, len(images))
    return apply(images, Operation(*(jnp.asarray(x)[choice] for x in rows)))


ROWS = (
    PolicyRow(
        name="trivialaugment",
        help="one random operation of random magnitude for each image",
        apply=trivialaugment,
    ),
)
