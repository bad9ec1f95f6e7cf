"""A dataset by how a person names it on the command line: a TFDS name, a folder, or a CSV file."""

import dataclasses
import pathlib
from typing import NamedTuple

from flax_resnet.data.data_section import Data
from flax_resnet.errors import ConfigError, DataError


class DatasetChoice(NamedTuple):
    """The images that a person asks for; what is empty or 0 is left to the network's own data section.

    Attributes:
      dataset: a TFDS dataset, a folder of images or a CSV file; empty for the section's own.
      train_split: split to train on; empty for the section's own, or train.
      split: split to evaluate on; empty for the section's own; of a TFDS dataset validation, or test
        where it has none; of a folder or CSV file test, val or validation, whichever is there.
      data_dir: TFDS data folder; empty for the section's own.
      image_size: side in pixels; 0 for the section's own.
    """

    dataset: str = ""
    train_split: str = ""
    split: str = ""
    data_dir: str = ""
    image_size: int = 0


def kind_of(dataset: str) -> str:
    """Returns the `data.source` of a dataset by how it is named: "tfds", "folder" or "csv".

    Raises:
      ConfigError: none is named.
      DataError: it is written as a path, and nothing is there.
    """
    if not dataset:
        raise ConfigError("--dataset is needed with --model: a TFDS dataset, or a folder of images")
    place = pathlib.Path(dataset).expanduser()
    if place.is_dir() or place.is_file():
        return "folder" if place.is_dir() else "csv"
    if dataset[0] in "./~":
        raise DataError(f"--dataset={dataset}: is neither a folder nor a file")
    return "tfds"


def data_section(data: Data, choice: DatasetChoice) -> Data:
    """Return a data section with its preprocessing kept and its images replaced.

    Args:
      data: the section that belongs to the network.
      choice: the images.

    Raises:
      DataError: there is no such dataset, or a split is asked of files that come without.
    """
    from flax_resnet.data.sources.files import splits_of

    dataset, train_split, split, data_dir, image_size = choice
    given = {"data_dir": data_dir, "eval_size": image_size}
    data = dataclasses.replace(data, **{name: value for name, value in given.items() if value})
    if dataset:
        kind = kind_of(dataset)
        data = dataclasses.replace(
            data,
            source=kind,
            **{"name" if kind == "tfds" else "path": dataset},
            image_feature="",
            label_feature="",
            train_split=Data().train_split,
            eval_split=Data().eval_split,
        )
        if kind == "tfds" and not split:
            from flax_resnet.data.sources.tfds import (
                evaluation_split,  # imports TFDS, which takes a second
            )

            split = evaluation_split(dataset, data.data_dir)
    place = pathlib.Path(data.path).expanduser()
    if data.source in ("folder", "csv") and place.exists() and not splits_of(data.path):
        for flag, value in (("train_split", train_split), ("split", split)):
            if value:
                raise DataError(
                    f"--{flag}={value}: {data.path} has no splits of its own; leave the flag out"
                )
    splits = {"train_split": train_split, "eval_split": split}
    return dataclasses.replace(data, **{name: value for name, value in splits.items() if value})
