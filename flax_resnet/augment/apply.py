"""Apply the configured augmentations to a batch, in order, inside the compiled step."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flax_resnet.augment import color, geometry, mix, random_erasing
from flax_resnet.augment.augment_section import FLIPS, POLICIES, Augment
from flax_resnet.augment.rng import Stream

Array = jax.Array


def normalize(images: Array, config: Augment) -> Array:
    """Map uint8 [N, H, W, 3] to float32: (x / 255 - mean) / std, per channel.

    If `config.mean` has one number, the images are first converted to grey, [N, H, W, 1]: ITU-R 601 luma, rounded
    as in Pillow.
    """
    mean, std = np.array(config.mean), np.array(config.std)
    scale, offset = (
        jnp.array(x, jnp.float32).reshape(1, 1, 1, -1) for x in (1 / (255 * std), mean / std)
    )
    pixels = images.astype(jnp.float32)
    if len(config.mean) == 1:
        luma = jnp.array([0.299, 0.587, 0.114], jnp.float32).reshape(1, 1, 1, 3)
        pixels = jnp.round((pixels * luma).sum(axis=-1, keepdims=True))
    # End with a sum, not a product. If XLA fuses this function with mixup, it contracts a final product and mixup's
    # sum into one operation with a single rounding. It does so on one device but not on eight, so bits differ.
    return pixels * scale - offset


def training_batch(
    key: Array, images: Array, labels: Array, num_classes: int, config: Augment
) -> tuple[Array, Array]:
    """Augment and normalise a global batch, in the order of torchvision's reference training.

    Each operation draws the random numbers of each row with a key of its own. So the pixels do not depend on the
    number of devices or processes, and no operation changes the draws of another.

    Args:
      key: the key of the step; operation s uses fold_in(fold_in(key, s), i) for row i.
      images: uint8 [N, H, W, 3].
      labels: int [N].
      num_classes: K.
      config: the augment section. The compiled program leaves out operations at their default.

    Returns:
      Images, float32 [N, H, W, 3], or [N, H, W, 1] if `config.mean` has one number; and soft labels,
      float32 [N, K], whose rows sum to 1.
    """

    def stream(operation: Stream) -> Array:
        return jax.random.fold_in(key, operation)

    if config.pad_crop:
        images = geometry.pad_crop(
            stream(Stream.PAD_CROP), images, config.pad_crop, config.pad_crop_fill
        )
    if config.flip != "none":
        images = FLIPS[config.flip].apply(stream(Stream.FLIP), images)
    jitters = {name: getattr(config, name) for name in color.JITTERS}
    if any(jitters.values()):
        images = color.jitter(stream(Stream.JITTER), images, jitters)
    if config.policy != "none":
        images = POLICIES[config.policy].apply(stream(Stream.POLICY), images, config)
    images = normalize(images, config)
    if config.random_erasing:
        images = random_erasing.erase(
            stream(Stream.RANDOM_ERASING), images, config.random_erasing,
            config.random_erasing_area, config.random_erasing_aspect, config.random_erasing_fill,
        )  # fmt: skip
    if config.cutout:
        images = random_erasing.cutout(stream(Stream.CUTOUT), images, config.cutout)
    targets = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    if config.mixup or config.cutmix:
        images, targets = mix.mix(
            stream(Stream.MIX), images, targets, mixup=config.mixup, cutmix=config.cutmix,
            mode=config.mix_mode, probability=config.mix_prob, switch=config.mix_switch_prob,
        )  # fmt: skip
    return images, targets


def evaluation_views(images: Array, config: Augment) -> list[tuple[float, Array]]:
    """Return the views of the images for test-time augmentation, each with its weight in the mean logits.

    Args:
      images: [N, H, W, C].
      config: `eval_flip` adds mirrored images; `eval_shift` adds images shifted along the diagonal with mirrored
        edges.

    Returns:
      Pairs of weight and images [N, H, W, C]; the weights sum to 1.

    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.5.
    """
    views, pixels = [(1.0, images)], config.eval_shift
    if pixels:
        sides = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
        padded = jnp.pad(images, sides, mode="reflect")
        _, height, width, _ = images.shape
        # Not by indexing, which gathers if the batch is symbolic.
        moved = [
            lax.slice_in_dim(rows, start, start + width, axis=2)
            for start in (0, 2 * pixels)
            for rows in [lax.slice_in_dim(padded, start, start + height, axis=1)]
        ]
        views = [(0.5, images), *((0.25, view) for view in moved)]
    if config.eval_flip:
        views = [(share / 2, side) for share, v in views for side in (v, lax.rev(v, (2,)))]
    return views


def evaluation_images(images: Array, config: Augment) -> Array:
    """Normalise uint8 [N, H, W, 3] to float32."""
    return normalize(images, config)
