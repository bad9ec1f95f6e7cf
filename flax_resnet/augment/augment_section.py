"""Settings of the preprocessing and augmentation on the device."""

import dataclasses
from collections.abc import Callable

import jax

from flax_resnet.settings import (
    ANY,
    UNSET,
    Registry,
    Row,
    Section,
    all_of,
    any_of,
    ascending_pair,
    at_least,
    choice,
    one_of,
    per_channel,
    setting,
    within,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyRow(Row):
    """One augmentation policy.

    Attributes:
      apply: (random key, uint8 [N, H, W, 3], settings) -> augmented images of the same shape and dtype. The
        draws for image i use a key derived from i, so that they do not depend on the number of devices.
    """

    apply: Callable[[jax.Array, jax.Array, "Augment"], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlipRow(Row):
    """One way to mirror training images.

    Attributes:
      apply: (random key, images [N, H, W, C]) -> images of the same shape and dtype.
    """

    apply: Callable[[jax.Array, jax.Array], jax.Array]


FLIPS: Registry[FlipRow] = Registry("flax_resnet.augment.geometry", "FLIP_ROWS")
POLICIES: Registry[PolicyRow] = Registry("flax_resnet.augment.policies")


@dataclasses.dataclass(frozen=True)
class Augment(Section):
    """Settings of the preprocessing and augmentation of uint8 batches on the device."""

    mean: tuple = setting(
        (0.485, 0.456, 0.406),
        per_channel(0, 1),
        "mean of each channel, subtracted from values in [0, 1]; () for the mean of model.pretrained",
    )
    std: tuple = setting(
        (0.229, 0.224, 0.225),
        per_channel(1e-6, 10),
        "standard deviation of each channel, which divides the values; () for the one of model.pretrained",
    )
    flip: str = choice("none", FLIPS, "mirror training images at random")
    eval_flip: bool = setting(
        False,
        ANY,
        "in evaluation, average the logits of each image and its mirror image",
        changes_result=False,
    )
    eval_shift: int = setting(
        0,
        at_least(0),
        "in evaluation, average the logits of each image (weight 1/2) and of the image shifted by this many pixels "
        "up and left, and down and right (1/4 each, with mirrored edges); 0 for no shift",
        changes_result=False,
    )
    pad_crop: int = setting(
        0,
        at_least(0),
        "pad each side by this many pixels, then crop a random window of the original size; 0 for none",
    )
    pad_crop_fill: str = setting(
        "black",
        one_of("black", "reflect"),
        "padding of pad_crop: black pixels, or the reflected image",
        needs=all_of("pad_crop"),
    )
    brightness: float = setting(
        0.0,
        at_least(0),
        "colour jitter: multiply by a random factor between max(0, 1 - value) and 1 + value; 0 for none",
    )
    contrast: float = setting(
        0.0,
        at_least(0),
        "colour jitter: scale the distance from the image's mean grey by a random factor, drawn as for brightness",
    )
    saturation: float = setting(
        0.0,
        at_least(0),
        "colour jitter: scale the distance from each pixel's grey by a random factor, drawn as for brightness",
    )
    hue: float = setting(
        0.0,
        within(0, 0.5),
        "colour jitter: largest rotation of the hue in either direction, as a share of a full turn",
    )
    policy: str = choice("none", POLICIES, "policy that draws random operations for each image")
    policy_ops: int = setting(UNSET, within(1, 14), "operations per image")
    policy_magnitude: int = setting(
        UNSET, within(0, 30), "strength of the operations, from 0 to 30"
    )
    random_erasing: float = setting(
        0.0,
        within(0, 1),
        "probability that a random rectangle of a training image is erased; 0 for none",
    )
    random_erasing_area: tuple = setting(
        (0.02, 0.33),
        ascending_pair(0, 1),
        "smallest and largest area of the erased rectangle, as a share of the image",
        needs=all_of("random_erasing"),
    )
    random_erasing_aspect: tuple = setting(
        (0.3, 3.3),
        ascending_pair(0.01, 100),
        "smallest and largest height / width of the erased rectangle",
        needs=all_of("random_erasing"),
    )
    random_erasing_fill: str = setting(
        "zero",
        one_of("zero", "noise"),
        "filling of the erased rectangle: the mean (zero), or normal noise",
        needs=all_of("random_erasing"),
    )
    cutout: int = setting(
        0, at_least(0), "side of the square that cutout sets to the mean, in pixels; 0 for none"
    )
    mixup: float = setting(0.0, at_least(0), "alpha of mixup's Beta distribution; 0 for none")
    cutmix: float = setting(0.0, at_least(0), "alpha of CutMix's Beta distribution; 0 for none")
    mix_mode: str = setting(
        "batch",
        one_of("batch", "pair", "element"),
        "images that share one draw of mixup or CutMix: all (batch), two partners (pair), none (element)",
        needs=any_of("mixup", "cutmix"),
    )
    mix_prob: float = setting(
        1.0,
        within(0, 1),
        "probability that a draw of mixup or CutMix mixes the images",
        needs=any_of("mixup", "cutmix"),
    )
    mix_switch_prob: float = setting(
        0.5,
        within(0, 1),
        "probability of CutMix instead of mixup",
        needs=all_of("mixup", "cutmix"),
    )
