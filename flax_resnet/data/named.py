"""Datasets named on the command line: a TFDS name, a folder, a CSV file, or SOURCE:DATASET."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from flax_resnet.data.data_section import NOT_TFDS, SOURCES, Data
from flax_resnet.errors import ConfigError, DataError, UserError
from flax_resnet.settings import UNSET

SPLITS = ("data.eval_split", "data.train_split", "split")  # keys of an error about a split


class DatasetChoice(NamedTuple):
    """The images to use. An empty field, or 0, keeps the value of the network's data section.

    Attributes:
      dataset: a TFDS dataset, a folder of images or a CSV file; or SOURCE:DATASET, with a name of `data.source`.
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


def source_of(dataset: str) -> tuple[str, str]:
    """Return the `data.source` of a dataset, and its path or name without the source.

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
    source, colon, location = dataset.partition(":")
    if colon and location and source in SOURCES and SOURCES[source].location:
        return source, location
    for row in SOURCES.values():
        if row.has_kind(dataset):
            return row.name, dataset
    raise DataError("is neither a folder nor a file", key="--dataset", value=dataset)


@contextlib.contextmanager
def naming_flags(dataset: str = "", split: str = "") -> Iterator[None]:
    """Let an error about the data inside this block name the flag that gave the value, not the setting.

    Args:
      dataset: the value of --dataset; empty if it is not set.
      split: the value of --split; empty if it is not set.
    """
    try:
        yield
    except UserError as error:
        key, value, problem = "", error.value, error.problem
        if split and error.key in SPLITS and value == split:
            key = "--split"
        elif dataset and error.key in ("data.path", "data.name"):
            key, value = "--dataset", dataset
            if error.key == "data.name" and error.problem == NOT_TFDS:
                problem = f"is neither a folder nor a file, and {NOT_TFDS}"
        if not key:
            raise
        renamed = {"key": key, "value": value, "allowed": error.allowed, "cure": error.cure}
        raise type(error)(problem, **renamed) from error


def dataset_settings(text: str, *, key: str, others: Iterable[str] = ()) -> dict[str, str]:
    """Return the settings of the data section for the argument of a recipe, SOURCE=DATASET.

    Args:
      text: the argument, such as ``folder=/path``, ``csv=/path`` or ``tfds=NAME``.
      key: the recipe, for the error.
      others: what else the recipe accepts, for the error.

    Raises:
      ConfigError: the source does not exist or takes no dataset, or the dataset is empty.
    """
    source, _, dataset = text.partition("=")
    if source not in SOURCES or not SOURCES[source].location or not dataset:
        forms = [f"{row.name}={row.location.upper()}" for row in SOURCES.values() if row.location]
        raise ConfigError(key=key, value=text, allowed=(*others, *forms))
    return {"source": source, SOURCES[source].location: dataset}


def data_section(data: Data, choice: DatasetChoice) -> Data:
    """Return a data section with other images and the same preprocessing.

    Args:
      data: the network's data section.
      choice: the images.

    Raises:
      DataError: the dataset does not exist.
      ConfigError: a split is requested for files without splits.
    """
    dataset, train_split, split, data_dir, image_size = choice
    data = data.but(**_given(eval_size=image_size))
    if dataset:
        source, location = source_of(dataset)
        own = {SOURCES[source].location: location}
        unset = {name: UNSET for name in SOURCES.settings} | own
        data = data.but(source=source, **unset, train_split=Data.train_split)
    data = data.but(**_given(data_dir=data_dir))
    row = SOURCES[data.source]
    if not row.has_splits(data):
        for flag, value in (("train_split", train_split), ("split", split)):
            if value:
                raise ConfigError(
                    f"{data.dataset} has no splits of its own",
                    key=f"--{flag}",
                    value=value,
                    cure="leave the flag out",
                )
    if dataset and not split:
        split = row.eval_split(data)
    return data.but(**_given(train_split=train_split, eval_split=split))


def _given(**fields: Any) -> dict[str, Any]:
    """Return the fields that are not empty and not 0."""
    return {name: value for name, value in fields.items() if value}
