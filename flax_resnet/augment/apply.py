"""Normalise, shift and mirror. Randomness is keyed by the row in the global batch, so that neither the
number of devices nor of processes changes a pixel.
"""

import jax
import jax.numpy as jnp

from flax_resnet.config import Augment

Array = jax.Array


def normalize(images: Array, config: Augment) -> Array:
    """Maps uint8 [N, H, W, 3] to float32: (x / 255 - mean) / std, per channel.

    With one mean the images become grey, [N, H, W, 1], by ITU-R 601's luma as Pillow has it.
    """
    mean = jnp.array(config.mean, jnp.float32).reshape(1, 1, 1, -1)
    std = jnp.array(config.std, jnp.float32).reshape(1, 1, 1, -1)
    pixels = images.astype(jnp.float32)
    if len(config.mean) == 1:
        luma = jnp.array([0.299, 0.587, 0.114], jnp.float32).reshape(1, 1, 1, 3)
        pixels = jnp.round((pixels * luma).sum(axis=-1, keepdims=True))
    return (pixels / 255 - mean) / std


def flip(key: Array, image: Array) -> Array:
    """Mirrors an image [H, W, C] left to right with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def shift(key: Array, image: Array, pixels: int) -> Array:
    """Pads an image [H, W, C] with black and crops a window of its own size at random.

    Source: He et al. 2016, section 4.2 (4 pixels for CIFAR-10).
    """
    padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def training_images(key: Array, images: Array, config: Augment) -> Array:
    """Augments and normalises a global batch.

    Args:
      key: the step's key; row i uses fold_in(key, i).
      images: uint8 [N, H, W, 3].
      config: the augment section.

    Returns:
      float32 [N, H, W, 3], or [N, H, W, 1] where `config.mean` is one number.
    """

    def one(row: Array, image: Array) -> Array:
        shift_key, flip_key = jax.random.split(jax.random.fold_in(key, row))
        if config.shift:
            image = shift(shift_key, image, config.shift)
        if config.flip:
            image = flip(flip_key, image)
        return image

    if config.shift or config.flip:
        images = jax.vmap(one)(jnp.arange(images.shape[0], dtype=jnp.uint32), images)
    return normalize(images, config)


def evaluation_images(images: Array, config: Augment) -> Array:
    """Normalises uint8 [N, H, W, 3] to float32."""
    return normalize(images, config)
