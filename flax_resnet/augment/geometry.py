"""Operations that move pixels: flip, pad and crop, and the affine warp for the policies."""

from functools import partial

import jax
import jax.numpy as jnp

from flax_resnet.augment.augment_section import FlipRow
from flax_resnet.augment.rng import below, row_keys, uniform

Array = jax.Array

PADDINGS = {"black": "constant", "reflect": "reflect"}


def flip(key: Array, images: Array, axis: int) -> Array:
    """Mirror each image of [N, H, W, C] with probability 1/2, top to bottom (axis 1) or left to right (axis 2)."""
    (chance,) = uniform(row_keys(key, len(images)), 1)
    return jnp.where(chance[:, None, None, None] < 0.5, jnp.flip(images, axis), images)


def flip_both(key: Array, images: Array) -> Array:
    """Mirror each image of [N, H, W, C] left to right, and top to bottom, each with probability 1/2."""
    across, down = jax.random.split(key)
    return flip(down, flip(across, images, 2), 1)


def pad_crop(key: Array, images: Array, pixels: int, padding: str = "black") -> Array:
    """Pad images, and crop windows of the original size at random positions.

    Args:
      key: the operation's key.
      images: [N, H, W, C].
      pixels: padding on each side; for "reflect", less than H and W.
      padding: "black", or "reflect" (mirrors without repeating the edge row).

    Returns:
      An array like `images`.

    Source: He et al. 2016, section 4.2 (4 black pixels for CIFAR-10).
    """
    sides = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
    padded = jnp.pad(images, sides, mode=PADDINGS[padding])
    top, left = below(uniform(row_keys(key, len(images)), 2), 2 * pixels + 1)

    def window(padded: Array, top: Array, left: Array) -> Array:
        return jax.lax.dynamic_slice(padded, (top, left, 0), images.shape[1:])

    return jax.vmap(window)(padded, top, left)


def warp(images: Array, matrices: Array) -> Array:
    """Warp images by affine matrices with nearest-neighbour sampling; pixels from outside the image are black.

    The output pixel at (x, y) is the input pixel at matrix @ (x, y, 1). Coordinates are pixels from the image's
    centre, x to the right and y down. They are computed as 31-bit fixed-point integers that span five image sides,
    so that all compilers and devices round equally. At 224 pixels, the error is 2^-20 of a side.

    Args:
      images: [N, H, W, C].
      matrices: float32 [N, 2, 3]; no pixel may come from more than two image sides away.

    Returns:
      An array like `images`.
    """
    height, width = images.shape[1:3]
    bits = 31 - (5 * max(height, width)).bit_length()
    fixed = jnp.round(matrices * 2.0**bits).astype(jnp.int32)
    # Double the coordinates, so that pixel centres are integers for odd and even sides.
    x = (2 * jnp.arange(width, dtype=jnp.int32) + 1 - width).reshape(1, 1, width)
    y = (2 * jnp.arange(height, dtype=jnp.int32) + 1 - height).reshape(1, height, 1)

    def source(row: int, side: int) -> Array:
        a, b, c = (fixed[:, row, column].reshape(-1, 1, 1) for column in range(3))
        return (a * x + b * y + 2 * c + (side << bits)) >> (bits + 1)

    columns, rows = source(0, width), source(1, height)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    # Use vmap: with one index over [N, H, W], the partitioner would gather the whole batch.
    taken = jax.vmap(lambda image, r, c: image.at[r, c].get(mode="clip"))(images, rows, columns)
    return jnp.where(inside[..., None], taken, 0)


def inside(top: Array, left: Array, height: Array, width: Array, shape: tuple[int, int]) -> Array:
    """Return a mask of the pixels inside each image's box; a box may extend over the borders.

    Args:
      top: first row, int [N].
      left: first column, int [N].
      height: number of rows, int [N].
      width: number of columns, int [N].
      shape: (H, W) of the image.

    Returns:
      bool [N, H, W, 1].
    """

    def along(start: Array, length: Array, side: int) -> Array:
        position = jnp.arange(side, dtype=jnp.int32)[None]
        return (position >= start[:, None]) & (position < (start + length)[:, None])

    rows, columns = along(top, height, shape[0]), along(left, width, shape[1])
    return (rows[:, :, None] & columns[:, None, :])[..., None]


FLIP_ROWS = (
    FlipRow(name="none", help="no mirroring", apply=lambda key, images: images),
    FlipRow(
        name="horizontal",
        help="left to right, with probability 1/2",
        apply=partial(flip, axis=2),
    ),
    FlipRow(
        name="vertical",
        help="top to bottom, with probability 1/2",
        apply=partial(flip, axis=1),
    ),
    FlipRow(
        name="both",
        help="left to right and top to bottom, each with probability 1/2",
        apply=flip_both,
    ),
)
