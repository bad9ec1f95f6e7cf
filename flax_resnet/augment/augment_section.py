"""Settings of the augmentation on the device."""

import dataclasses

from flax_resnet.settings import (
    ANY,
    ascending_pair,
    at_least,
    one_of,
    per_channel,
    setting,
    within,
)


@dataclasses.dataclass(frozen=True)
class Augment:
    """Settings of the augmentation of uint8 batches on the device."""

    mean: tuple = setting(
        (0.485, 0.456, 0.406),
        per_channel(0, 1),
        "subtracted, per channel; () for that of pretrained",
    )
    std: tuple = setting(
        (0.229, 0.224, 0.225),
        per_channel(1e-6, 10),
        "divided by, per channel; () for that of pretrained",
    )
    flip: bool = setting(False, ANY, "mirror every other training image, left to right")
    eval_flip: bool = setting(
        False, ANY, "evaluate the mean logits of an image and its mirror", changes_result=False
    )
    eval_shift: int = setting(
        0,
        at_least(0),
        "evaluate the mean logits of an image (1/2) and of it moved up left and down right by this many pixels, "
        "its edge mirrored (1/4 each)",
        changes_result=False,
    )
    pad_crop: int = setting(0, at_least(0), "pad by this many pixels and crop back at random")
    pad_crop_fill: str = setting("black", one_of("black", "reflect"), "what pad_crop pads with")
    brightness: float = setting(
        0.0, at_least(0), "jitter: the factor is 1 - this (0 at least) to 1 + this; 0 for none"
    )
    contrast: float = setting(0.0, at_least(0), "jitter about the mean grey, as brightness")
    saturation: float = setting(0.0, at_least(0), "jitter about each pixel's grey, as brightness")
    hue: float = setting(0.0, within(0, 0.5), "jitter: turns of the colour circle, either way")
    policy: str = setting(
        "none",
        one_of("none", "randaugment", "trivialaugment"),
        "random operations, each image with its own",
    )
    policy_ops: int = setting(2, within(1, 14), "for randaugment: operations on each image")
    policy_magnitude: int = setting(9, within(0, 30), "for randaugment: how strong, of 30")
    random_erasing: float = setting(
        0.0, within(0, 1), "share of images that lose a random rectangle"
    )
    random_erasing_area: tuple = setting(
        (0.02, 0.33), ascending_pair(0, 1), "its share of the image"
    )
    random_erasing_aspect: tuple = setting(
        (0.3, 3.3), ascending_pair(0.01, 100), "its height over width"
    )
    random_erasing_fill: str = setting(
        "zero", one_of("zero", "noise"), "what replaces it: the mean, or normal noise"
    )
    cutout: int = setting(0, at_least(0), "side of the square set to the mean, pixels; 0 for none")
    mixup: float = setting(0.0, at_least(0), "alpha of mixup's Beta distribution; 0 for none")
    cutmix: float = setting(0.0, at_least(0), "alpha of CutMix's Beta distribution; 0 for none")
    mix_mode: str = setting(
        "batch", one_of("batch", "pair", "element"), "what shares one draw of mixup or CutMix"
    )
    mix_prob: float = setting(1.0, within(0, 1), "that a draw of mixup or CutMix mixes")
    mix_switch_prob: float = setting(0.5, within(0, 1), "that it is CutMix, with both on")
