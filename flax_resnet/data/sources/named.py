"""Datasets named on the command line: a TFDS name, a folder, or a CSV file."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

from flax_resnet.data.data_section import Data
from flax_resnet.errors import ConfigError, DataError


class DatasetChoice(NamedTuple):
    """The images to use. An empty field, or 0, keeps the value of the network's data section.

    Attributes:
      dataset: a TFDS dataset, a folder of images or a CSV file.
      train_split: split to train on. If it is empty, a new dataset uses train.
      split: split to evaluate on. If it is empty, a new TFDS dataset uses validation, or test if it has no
        validation; a new folder or CSV file uses the first of test, val and validation that exists.
      data_dir: TFDS data folder.
      image_size: side in pixels.
    """

    dataset: str = ""
    train_split: str = ""
    split: str = ""
    data_dir: str = ""
    image_size: int = 0


def kind_of(dataset: str) -> str:
    """Return the `data.source` of a dataset name: "tfds", "folder" or "csv".

    Raises:
      ConfigError: the name is empty.
      DataError: the name is a path that does not exist.
    """
    if not dataset:
        raise ConfigError(
            "is needed with --model",
            key="--dataset",
            allowed="a TFDS dataset, a folder of images or a CSV file",
        )
    path = pathlib.Path(dataset).expanduser()
    if path.is_dir() or path.is_file():
        return "folder" if path.is_dir() else "csv"
    if dataset[0] in "./~":
        raise DataError("is neither a folder nor a file", key="--dataset", value=dataset)
    return "tfds"


def data_section(data: Data, choice: DatasetChoice) -> Data:
    """Return a data section with other images and the same preprocessing.

    Args:
      data: the network's data section.
      choice: the images.

    Raises:
      DataError: the dataset does not exist.
      ConfigError: a split is requested for files without splits.
    """
    from flax_resnet.data.sources.files import splits_of

    dataset, train_split, split, data_dir, image_size = choice
    data = dataclasses.replace(data, **_given(data_dir=data_dir, eval_size=image_size))
    if dataset:
        kind = kind_of(dataset)
        place_of: dict[str, Any] = {"name" if kind == "tfds" else "path": dataset}
        data = dataclasses.replace(
            data,
            source=kind,
            **place_of,
            image_feature="",
            label_feature="",
            train_split=Data().train_split,
            eval_split=Data().eval_split,
        )
        if kind == "tfds" and not split:
            # Imported here, because it imports TFDS, which takes a second.
            from flax_resnet.data.sources.tfds import evaluation_split

            split = evaluation_split(dataset, data.data_dir)
    path = pathlib.Path(data.path).expanduser()
    if data.source in ("folder", "csv") and path.exists() and not splits_of(data.path):
        for flag, value in (("train_split", train_split), ("split", split)):
            if value:
                raise ConfigError(
                    f"{data.path} has no splits of its own",
                    key=f"--{flag}",
                    value=value,
                    cure="leave the flag out",
                )
    return dataclasses.replace(data, **_given(train_split=train_split, eval_split=split))


def _given(**fields: Any) -> dict[str, Any]:
    """Return the fields that are not empty and not 0."""
    return {name: value for name, value in fields.items() if value}
