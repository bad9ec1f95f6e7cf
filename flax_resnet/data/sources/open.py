"""Opens the dataset that a configuration names."""

from flax_resnet.data.data_section import Data
from flax_resnet.data.records import StoredSource
from flax_resnet.errors import DataError


def open_source(config: Data, *, train: bool, split: str = "") -> StoredSource:
    """Opens the training or the evaluation split of the configured dataset.

    Args:
      config: the data section.
      train: which of the two configured splits; also the side of a folder's own split.
      split: another split instead.

    Raises:
      DataError: the dataset or split is unknown, absent, empty or of the wrong kind; one line.
    """
    split = split or (config.train_split if train else config.eval_split)
    if config.source == "tfds":
        from flax_resnet.data.sources.tfds import TfdsSource  # imports TFDS, which takes a second

        return TfdsSource(config, split)
    if config.source == "python":
        raise DataError(
            "data.source='python': sources come from Python, as sources given to train()"
        )
    from flax_resnet.data.sources.files import csv_source, folder_source

    opened = {"folder": folder_source, "csv": csv_source}[config.source]
    return opened(config, split, train=train)
