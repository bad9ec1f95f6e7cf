"""Open the dataset of a configuration."""

from flax_resnet.data.data_section import SOURCES, Data
from flax_resnet.data.records import StoredSource


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
    return SOURCES[config.source].open(config, split, train)
