"""RandAugment: several random operations of one magnitude for each image."""

import jax
import jax.numpy as jnp

from flax_resnet.augment.augment_section import Augment, PolicyRow
from flax_resnet.augment.policy import Operation, Ranges, apply, choices, operations

Array = jax.Array


def ranges(height: int, width: int) -> Ranges:
    """Return torchvision's ranges of magnitudes for images of this size."""
    across, down = 150 / 331 * width, 150 / 331 * height
    positive = {"shear": 0.3, "across": across, "down": down, "degrees": 30, "amount": 0.9}
    return {
        "none": (0, 0),
        "threshold": (255, 0),
        "bits": (8, 4),
        **{name: (0, most) for name, most in positive.items()},
    }


def randaugment(key: Array, images: Array, section: Augment) -> Array:
    """Apply `policy_ops` random operations to each image in turn, with a fixed magnitude and a random sign.

    Args:
      key: the operation's key.
      images: uint8 [N, H, W, 3].
      section: the settings; `policy_magnitude` is the index of torchvision's 31 bins.

    Returns:
      Images like `images`. Warps use the nearest pixel; pixels from outside the image are black.

    Source: Cubuk et al. 2020, "RandAugment", section 3; operations and ranges are torchvision's.
    """
    height, width = images.shape[1:3]
    rows = [
        jnp.asarray(x[:, section.policy_magnitude])
        for x in operations(ranges(height, width), height, width)
    ]

    def turn(number: Array, images: Array) -> Array:
        kind, _, sign = choices(jax.random.fold_in(key, number), len(images))
        return apply(images, Operation(*(x[kind, sign] for x in rows)))

    # A loop makes XLA write the images to memory between two operations. If it is unrolled, XLA computes a warp
    # again in each operation that reads its result, which takes twice as long.
    return jax.lax.fori_loop(0, section.policy_ops, turn, images)


ROWS = (
    PolicyRow(
        name="randaugment",
        help="several random operations of one magnitude for each image",
        uses={"policy_ops": 2, "policy_magnitude": 9},
        apply=randaugment,
    ),
)
