"""Open the dataset of a configuration."""

from flax_resnet.data.data_section import Data
from flax_resnet.data.records import StoredSource
from flax_resnet.errors import DataError


def open_source(config: Data, *, train: bool, split: str = "") -> StoredSource:
    """Open the training or the evaluation split of the configured dataset.

    Args:
      config: the data section.
      train: whether to open the training split. If `held_out` splits the files, this alone selects the split.
      split: name of another split to open instead of the configured one.

    Raises:
      DataError: the dataset or split is unknown, missing, empty or of the wrong kind; one line.
    """
    split = split or (config.train_split if train else config.eval_split)
    if config.source == "tfds":
        # Imported here, because it imports TFDS, which takes a second.
        from flax_resnet.data.sources.tfds import TfdsSource

        return TfdsSource(config, split)
    if config.source == "python":
        raise DataError(
            key="data.source", value="python", cure="pass the sources to train() in Python"
        )
    from flax_resnet.data.sources.files import csv_source, folder_source

    opened = {"folder": folder_source, "csv": csv_source}[config.source]
    return opened(config, split, train=train)
