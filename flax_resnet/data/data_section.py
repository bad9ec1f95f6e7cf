"""Settings of the images: which images, and how the host crops and resizes them."""

import dataclasses

from flax_resnet.settings import (
    ANY,
    LARGEST_IMAGE,
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
        "tfds",
        one_of("tfds", "folder", "csv", "python"),
        "source of the images: a TFDS dataset, a folder, a CSV file, or arrays passed from Python",
    )
    name: str = setting(
        "digits", ANY, "name of the TFDS dataset: name, name/config or name:version"
    )
    path: str = setting(
        "",
        ANY,
        "for source=folder: path of the folder; for csv: path of a CSV file with the columns path and label",
        changes_result=False,
    )
    data_dir: str = setting(
        "", ANY, "TFDS data folder; '' for TFDS's default", changes_result=False
    )
    image_feature: str = setting(
        "",
        ANY,
        "name of the TFDS feature with the image; '' for 'image', or for the only image feature",
    )
    label_feature: str = setting(
        "",
        ANY,
        "name of the TFDS feature with the label; '' for 'label', or for the only class label",
    )
    train_split: str = setting(
        "train",
        ANY,
        "split to train on: a TFDS split expression, or a split of the folder or CSV file",
    )
    eval_split: str = setting("test", ANY, "split to evaluate on, given like train_split")
    eval_fraction: float = setting(
        0.2,
        within(0.01, 0.99),
        "share of the files held out for evaluation, if a folder or CSV file defines no splits",
    )
    split_seed: int = setting(
        0,
        within(0, 2**31 - 1),
        "seed that selects the held-out files, and the subsets of fraction and limit",
    )
    fraction: float = setting(
        1.0, within(1e-6, 1), "share of the training examples to use, a random subset"
    )
    limit: int = setting(
        0, at_least(0), "largest number of training examples to use, a random subset; 0 for all"
    )
    augmentation_repeats: int = setting(
        1,
        at_least(1),
        "copies of an example in an epoch; an epoch keeps its length and shows 1/augmentation_repeats of the data",
    )
    class_balanced: bool = setting(False, ANY, "draw all classes equally often in training")
    exif: bool = setting(
        True, ANY, "turn the images of folders and CSV files upright by their EXIF orientation"
    )
    image_size: int = setting(
        8,
        within(0, LARGEST_IMAGE),
        "height and width of the network's input, in pixels; 0 for the size of model.pretrained",
    )
    progressive: tuple = setting(
        (),
        SIZES,
        "progressive resizing: (start, size) pairs such as ((0, 160), (6, 192)), with starts in schedule.unit and "
        "sizes in pixels; () to train at image_size throughout",
    )
    eval_size: int = setting(
        0,
        within(0, LARGEST_IMAGE),
        "image size for evaluation and prediction, in pixels; 0 for image_size",
    )
    train_crop: str = setting(
        "resize",
        one_of("resize", "center", "random_resized"),
        "how training images are cropped; resize scales the whole image",
    )
    eval_crop: str = setting(
        "resize",
        one_of("resize", "center"),
        "how evaluation images are cropped; resize scales the whole image",
    )
    eval_crop_fraction: float = setting(
        0.875,
        within(0.01, 1),
        "for center crops: side of the crop / short side of the resized image",
    )
    crop_area: tuple = setting(
        (0.08, 1.0),
        ascending_pair(0, 1),
        "for random_resized crops: smallest and largest area, as a share of the image",
    )
    crop_aspect: tuple = setting(
        (0.75, 4 / 3),
        ascending_pair(0.01, 100),
        "for random_resized crops: smallest and largest width / height",
    )
    interpolation: str = setting(
        "bilinear", one_of("bilinear", "bicubic"), "interpolation for resizing"
    )
    train_antialias: bool = setting(
        False,
        ANY,
        "antialias all random_resized crops; False to antialias only those of at least twice image_size",
    )
    reduced_decode: bool = setting(
        True,
        ANY,
        "decode JPEGs at 1/2, 1/4 or 1/8 size if a random_resized crop is at least 2, 4 or 8 times image_size",
    )
    dct: str = setting(
        "accurate",
        one_of("accurate", "fast"),
        "inverse DCT that decodes JPEGs for random_resized crops; fast is less exact",
    )
    max_bad_images: int = setting(
        10,
        at_least(0),
        "largest number of unreadable images to replace, each with a warning; one more stops the run",
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
