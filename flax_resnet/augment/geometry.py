"""Operations that move pixels: flip, pad and crop, and the affine warp of the policies."""

import jax
import jax.numpy as jnp

from flax_resnet.augment.rng import below, row_keys, uniform

Array = jax.Array

PADDINGS = {"black": "constant", "reflect": "reflect"}


def flip(key: Array, images: Array) -> Array:
    """Mirrors each image of [N, H, W, C] left to right with probability 1/2."""
    (chance,) = uniform(row_keys(key, len(images)), 1)
    return jnp.where(chance[:, None, None, None] < 0.5, images[:, :, ::-1], images)


def pad_crop(key: Array, images: Array, pixels: int, padding: str = "black") -> Array:
    """Pads images and crops windows of their own size at random.

    Args:
      key: the operation's key.
      images: [N, H, W, C].
      pixels: how many are padded on each side; for "reflect" fewer than H and W.
      padding: "black", or "reflect" (the edge row itself is not repeated).

    Returns:
      As `images`.

    Source: He et al. 2016, section 4.2 (4 black pixels for CIFAR-10).
    """
    sides = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
    padded = jnp.pad(images, sides, mode=PADDINGS[padding])
    top, left = below(uniform(row_keys(key, len(images)), 2), 2 * pixels + 1)

    def window(padded: Array, top: Array, left: Array) -> Array:
        return jax.lax.dynamic_slice(padded, (top, left, 0), images.shape[1:])

    return jax.vmap(window)(padded, top, left)


def warp(images: Array, matrices: Array) -> Array:
    """Takes every pixel from the nearest one to where its matrix points; outside is black.

    Coordinates are pixels from the image's centre, x to the right and y down: the pixel at (x, y) becomes that at
    matrix @ (x, y, 1). The arithmetic is integer, with 31 bits for coordinates up to five sides' length,
    so that no compiler or device can round it otherwise: 2^-20 of a side is the error at 224 pixels.

    Args:
      images: [N, H, W, C].
      matrices: float32 [N, 2, 3]; |entries| such that no pixel comes from more than two sides away.

    Returns:
      As `images`.
    """
    height, width = images.shape[1:3]
    bits = 31 - (5 * max(height, width)).bit_length()
    fixed = jnp.round(matrices * 2.0**bits).astype(jnp.int32)
    # Doubled, so that the centres of pixels are integers whether a side is odd or even.
    x = (2 * jnp.arange(width, dtype=jnp.int32) + 1 - width).reshape(1, 1, width)
    y = (2 * jnp.arange(height, dtype=jnp.int32) + 1 - height).reshape(1, height, 1)

    def source(row: int, side: int) -> Array:
        a, b, c = (fixed[:, row, column].reshape(-1, 1, 1) for column in range(3))
        return (a * x + b * y + 2 * c + (side << bits)) >> (bits + 1)

    columns, rows = source(0, width), source(1, height)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    # A vmap, and not one index over [N, H, W]: the partitioner would gather the whole batch for that.
    taken = jax.vmap(lambda image, r, c: image.at[r, c].get(mode="clip"))(images, rows, columns)
    return jnp.where(inside[..., None], taken, 0)


def inside(top: Array, left: Array, height: Array, width: Array, shape: tuple[int, int]) -> Array:
    """Returns which pixels lie in each row's box; it may reach over the borders.

    Args:
      top: first row, int [N].
      left: first column, int [N].
      height: rows, int [N].
      width: columns, int [N].
      shape: (H, W) of the image.

    Returns:
      bool [N, H, W, 1].
    """

    def along(start: Array, length: Array, side: int) -> Array:
        place = jnp.arange(side, dtype=jnp.int32)[None]
        return (place >= start[:, None]) & (place < (start + length)[:, None])

    rows, columns = along(top, height, shape[0]), along(left, width, shape[1])
    return (rows[:, :, None] & columns[:, None, :])[..., None]
