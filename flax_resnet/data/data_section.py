"""Settings of the images: which images, and how the host crops and resizes them."""

import dataclasses

from flax_resnet.settings import (
    ANY,
    SIZES,
    ascending_pair,
    at_least,
    one_of,
    setting,
    within,
)


@dataclasses.dataclass(frozen=True)
class Data:
    """Settings of the images: which images, and how the host crops and resizes them."""

    source: str = setting(
        "tfds", one_of("tfds", "folder", "csv", "python"), "where the images come from"
    )
    name: str = setting("digits", ANY, "TFDS dataset, as name, name/config or name:version")
    path: str = setting(
        "",
        ANY,
        "folder of images, or CSV file of path and label, for source=folder or csv",
        changes_result=False,
    )
    data_dir: str = setting("", ANY, "TFDS data folder; empty for TFDS's own", changes_result=False)
    image_feature: str = setting("", ANY, "TFDS feature; empty for 'image', or the only image")
    label_feature: str = setting(
        "", ANY, "TFDS feature; empty for 'label', or the only class label"
    )
    train_split: str = setting("train", ANY, "TFDS split expression, or folder split, to train on")
    eval_split: str = setting("test", ANY, "split to evaluate on")
    eval_fraction: float = setting(
        0.2, within(0.01, 0.99), "share kept for evaluation where files come without a split"
    )
    split_seed: int = setting(
        0, within(0, 2**31 - 1), "chooses the files kept for evaluation, and subsets"
    )
    fraction: float = setting(
        1.0, within(1e-6, 1), "share of the training examples used, chosen at random"
    )
    limit: int = setting(0, at_least(0), "most training examples used; 0 for all")
    augmentation_repeats: int = setting(
        1, at_least(1), "how often an epoch shows an example, and so 1/augmentation_repeats of them"
    )
    class_balanced: bool = setting(False, ANY, "draw every class equally often")
    exif: bool = setting(True, ANY, "turn image files upright as their EXIF data say")
    image_size: int = setting(
        8, at_least(0), "height and width of the network's input, pixels; 0 for those of pretrained"
    )
    progressive: tuple = setting(
        (),
        SIZES,
        "sizes to train at from a point of the run on, in schedule.unit, as ((0, 160), (6, 192)); () for "
        "image_size throughout",
    )
    eval_size: int = setting(
        0, at_least(0), "image_size to evaluate at, and to predict at; 0 for that of training"
    )
    train_crop: str = setting(
        "resize", one_of("resize", "center", "random_resized"), "how a training image is cut"
    )
    eval_crop: str = setting("resize", one_of("resize", "center"), "how a test image is cut")
    eval_crop_fraction: float = setting(
        0.875, within(0.01, 1), "side of the centre crop over the resized image's short side"
    )
    crop_area: tuple = setting((0.08, 1.0), ascending_pair(0, 1), "area share of a random crop")
    crop_aspect: tuple = setting(
        (0.75, 4 / 3), ascending_pair(0.01, 100), "width over height of a random crop"
    )
    interpolation: str = setting("bilinear", one_of("bilinear", "bicubic"), "resampling filter")
    train_antialias: bool = setting(
        False, ANY, "antialias random crops below twice the image size too; all else always is"
    )
    reduced_decode: bool = setting(
        True, ANY, "decode random crops of twice the image size or more to half size, and so on"
    )
    dct: str = setting("accurate", one_of("accurate", "fast"), "JPEG transform of training images")
    max_bad_images: int = setting(
        10,
        at_least(0),
        "unreadable images named and replaced before the run stops",
        changes_result=False,
    )
    threads: int = setting(
        0, at_least(0), "decoding threads; 0 for one per core", changes_result=False
    )


def split_setting(data: Data, split: str) -> str:
    """Return the setting that names a split, as the key of an error; "split" if no setting names it."""
    return next(
        (f"data.{key}" for key in ("train_split", "eval_split") if getattr(data, key) == split),
        "split",
    )
