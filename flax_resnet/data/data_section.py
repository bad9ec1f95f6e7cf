"""Settings of the images: which images, and how the host crops and resizes them."""

import dataclasses
from collections.abc import Callable

from flax_resnet.data.records import StoredSource
from flax_resnet.errors import printable
from flax_resnet.settings import (
    ANY,
    LARGEST_IMAGE,
    NOT_EMPTY,
    SIZES,
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
    setting,
    within,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceRow(Row):
    """One kind of dataset.

    Attributes:
      open: (settings, name of the split, whether it is the training split) -> the split. Raises DataError, in one
        line, if the dataset or split is unknown, missing, empty or of the wrong kind.
      location: the setting that names the dataset; "" if the images are passed from Python.
      has_kind: returns whether a text on the command line, without a prefix such as ``folder:``, is a dataset of
        this kind.
      has_splits: (settings) -> whether the dataset defines its splits. If not, the host holds out a share of the
        examples for evaluation.
      eval_split: (settings) -> the split to evaluate on, if the user names none. Raises DataError.
    """

    open: Callable[["Data", str, bool], StoredSource]
    location: str = ""
    has_kind: Callable[[str], bool] = lambda text: False
    has_splits: Callable[["Data"], bool] = lambda config: True
    eval_split: Callable[["Data"], str] = lambda config: Data.eval_split


SOURCES: Registry[SourceRow] = Registry("flax_resnet.data.sources")
NOT_TFDS = "is not a TFDS dataset"  # the problem of a name that TFDS does not know
EVAL_FRACTION = 0.2  # share of the examples held out for evaluation, if a dataset defines no splits

RANDOM_RESIZED = all_of(train_crop="random_resized")


@dataclasses.dataclass(frozen=True)
class Data(Section):
    """Settings of the images: which images, and how the host crops and resizes them."""

    source: str = choice("tfds", SOURCES, "kind of the dataset")
    name: str = setting(UNSET, ANY, "name of the dataset: name, name/config or name:version")
    path: str = setting(
        UNSET, NOT_EMPTY, "path of the dataset: a folder or a file", changes_result=False
    )
    data_dir: str = setting(
        UNSET, ANY, "TFDS data folder; '' for TFDS's default", changes_result=False
    )
    image_feature: str = setting(
        UNSET,
        ANY,
        "name of the feature with the image; '' for 'image', or for the only image feature",
    )
    label_feature: str = setting(
        UNSET,
        ANY,
        "name of the feature with the label; '' for 'label', or for the only class label",
    )
    train_split: str = setting(
        "train",
        ANY,
        "split to train on: a TFDS split expression, or a split of the folder or CSV file",
    )
    eval_split: str = setting("test", ANY, "split to evaluate on, given like train_split")
    eval_fraction: float = setting(
        UNSET,
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
        True,
        ANY,
        "turn image files upright by their EXIF orientation, in folders, CSV files and prediction",
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
        "side of a center crop / short side of the resized image",
        needs=any_of(train_crop="center", eval_crop="center"),
    )
    crop_area: tuple = setting(
        (0.08, 1.0),
        ascending_pair(0, 1),
        "smallest and largest area of a crop, as a share of the image",
        needs=RANDOM_RESIZED,
    )
    crop_aspect: tuple = setting(
        (0.75, 4 / 3),
        ascending_pair(0.01, 100),
        "smallest and largest width / height of a crop",
        needs=RANDOM_RESIZED,
    )
    interpolation: str = setting(
        "bilinear", one_of("bilinear", "bicubic"), "interpolation for resizing"
    )
    train_antialias: bool = setting(
        False,
        ANY,
        "antialias all crops; False to antialias only those of at least twice image_size",
        needs=RANDOM_RESIZED,
    )
    reduced_decode: bool = setting(
        True,
        ANY,
        "decode JPEGs at 1/2, 1/4 or 1/8 size if a crop is at least 2, 4 or 8 times image_size",
        needs=RANDOM_RESIZED,
    )
    dct: str = setting(
        "accurate",
        one_of("accurate", "fast"),
        "inverse DCT that decodes JPEGs; fast is less exact",
        needs=RANDOM_RESIZED,
    )
    max_bad_images: int = setting(
        10,
        at_least(0),
        "largest number of unreadable images to replace, each with a warning; one more stops the run",
        changes_result=False,
    )
    threads: int = setting(
        0, within(0, 1024), "decoding threads; 0 for one per core", changes_result=False
    )

    @property
    def smallest_size(self) -> int:
        """The height and width of the smallest training images, in pixels; 0 if the pretrained weights set it."""
        return min((int(size) for _, size in self.progressive), default=self.image_size)

    @property
    def dataset(self) -> str:
        """The name or path of the dataset, `printable`; "" for sources from Python."""
        location = SOURCES[self.source].location
        return printable(getattr(self, location)) if location else ""


def split_setting(data: Data, split: str) -> str:
    """Return the setting that names a split, as the key of an error; "split" if no setting names it."""
    return next(
        (f"data.{key}" for key in ("train_split", "eval_split") if getattr(data, key) == split),
        "split",
    )
