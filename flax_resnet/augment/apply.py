"""What the compiled step does to a batch: the operations that the configuration turns on, in their order."""

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.augment import color, geometry, mix, policy, random_erasing
from flax_resnet.augment.augment_section import Augment
from flax_resnet.augment.rng import Stream

Array = jax.Array


def normalize(images: Array, config: Augment) -> Array:
    """Maps uint8 [N, H, W, 3] to float32: (x / 255 - mean) / std, per channel.

    With one mean the images become grey, [N, H, W, 1], by ITU-R 601's luma as Pillow has it.
    """
    mean, std = np.array(config.mean), np.array(config.std)
    scale, offset = (
        jnp.array(x, jnp.float32).reshape(1, 1, 1, -1) for x in (1 / (255 * std), mean / std)
    )
    pixels = images.astype(jnp.float32)
    if len(config.mean) == 1:
        luma = jnp.array([0.299, 0.587, 0.114], jnp.float32).reshape(1, 1, 1, 3)
        pixels = jnp.round((pixels * luma).sum(axis=-1, keepdims=True))
    # The sum comes last: XLA would contract a last product with the mixing's sum into one rounding where it fuses
    # the two, which it does on one device and not on eight.
    return pixels * scale - offset


def training_batch(
    key: Array, images: Array, labels: Array, num_classes: int, config: Augment
) -> tuple[Array, Array]:
    """Augments and normalises a global batch; the order is that of torchvision's reference training.

    Every draw is keyed by the operation and by the row, so that neither the number of devices nor of processes
    changes a pixel, nor does one operation change what another draws.

    Args:
      key: the step's key; operation s draws for row i by fold_in(fold_in(key, s), i).
      images: uint8 [N, H, W, 3].
      labels: int [N].
      num_classes: K.
      config: the augment section. An operation at its default is not part of the program.

    Returns:
      Images, float32 [N, H, W, 3], or [N, H, W, 1] where `config.mean` is one number; and soft labels,
      float32 [N, K], whose rows sum to 1.
    """

    def stream(operation: Stream) -> Array:
        return jax.random.fold_in(key, operation)

    if config.pad_crop:
        images = geometry.pad_crop(
            stream(Stream.PAD_CROP), images, config.pad_crop, config.pad_crop_fill
        )
    if config.flip:
        images = geometry.flip(stream(Stream.FLIP), images)
    jitters = {name: getattr(config, name) for name in color.JITTERS}
    if any(jitters.values()):
        images = color.jitter(stream(Stream.JITTER), images, jitters)
    if config.policy == "randaugment":
        images = policy.randaugment(
            stream(Stream.POLICY), images, config.policy_ops, config.policy_magnitude
        )
    elif config.policy == "trivialaugment":
        images = policy.trivialaugment(stream(Stream.POLICY), images)
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
    """Returns what of images an evaluation shows the network, each with its share of the mean logits.

    Args:
      images: [N, H, W, C].
      config: `eval_flip` adds mirror images; `eval_shift` images moved along the diagonal, their edge mirrored.

    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.5.
    """
    views, pixels = [(1.0, images)], config.eval_shift
    if pixels:
        sides = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
        padded = jnp.pad(images, sides, mode="reflect")
        moved = [padded[:, : -2 * pixels, : -2 * pixels], padded[:, 2 * pixels :, 2 * pixels :]]
        views = [(0.5, images), *((0.25, view) for view in moved)]
    if config.eval_flip:
        views = [(share / 2, side) for share, v in views for side in (v, v[:, :, ::-1])]
    return views


def evaluation_images(images: Array, config: Augment) -> Array:
    """Normalises uint8 [N, H, W, 3] to float32."""
    return normalize(images, config)
