"""Datasets named on the command line: a TFDS name, a folder, a CSV file, or SOURCE:DATASET."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from flax_resnet.data.data_section import SOURCES, Data
from flax_resnet.errors import ConfigError, DataError
from flax_resnet.settings import UNSET


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
