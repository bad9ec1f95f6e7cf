"""The images of a run where they are now: in their own place, moved to another one, or other images."""

import logging
import os

from flax_resnet.data import fingerprint
from flax_resnet.data.data_section import SOURCES, Data
from flax_resnet.data.named import DatasetChoice, data_section, source_of
from flax_resnet.data.open import open_source
from flax_resnet.errors import ConfigError, DataError
from flax_resnet.settings import UNSET
from flax_resnet.training.runs.load import LoadedRun

log = logging.getLogger("flax_resnet")


def run_data(run: LoadedRun, dataset: str = "", *, split: str = "", data_dir: str = "") -> Data:
    """Return the data section of a run, maybe with other images and the same preprocessing.

    If `dataset` holds the images that the run was trained on (a training split with the same classes, number of
    images, and fingerprint), it keeps the run's splits. Otherwise all images of a folder or file without splits
    are for evaluation. A line says which.

    Args:
      run: the run.
      dataset: a dataset, as for `DatasetChoice`; empty for that of the run.
      split: the split to evaluate on; empty for that of the run, or of the dataset.
      data_dir: TFDS data folder; empty for that of the run.

    Raises:
      UserError: there is no such dataset, or it has no splits although `split` names one.
    """
    own = run.config.data.but(data_dir=data_dir) if data_dir else run.config.data
    if not dataset:
        return _with_split(own, split)
    source, location = source_of(dataset)
    if os.path.exists(os.path.expanduser(location)):  # so that the record says where it was
        location = os.path.abspath(os.path.expanduser(location))
    if source == own.source:
        moved = own.but(**{SOURCES[source].location: location})
        if _is_training_data(moved, run):
            log.info("--dataset=%s: the images that the run was trained on", dataset)
            return _with_split(moved, split)
    choice = DatasetChoice(f"{source}:{location}", split=split, data_dir=data_dir)
    data = data_section(own, choice)
    what = f"its split {data.eval_split!r} is used"
    if data.eval_fraction is not UNSET and not SOURCES[data.source].has_splits(data):
        data, what = data.but(eval_fraction=1.0), "all its images are used"
    log.info("--dataset=%s: not the images that the run was trained on; %s", dataset, what)
    return data


def _with_split(data: Data, split: str) -> Data:
    """Return the data with another split to evaluate on; the same data for an empty name."""
    held_out = (data.train_split, data.eval_split)
    if split and split not in held_out and not SOURCES[data.source].has_splits(data):
        raise ConfigError(
            f"{data.dataset} has no splits of its own",
            key="--split",
            value=split,
            allowed=" or ".join(map(repr, held_out)),
        )
    return data.but(eval_split=split) if split else data


def _is_training_data(data: Data, run: LoadedRun) -> bool:
    try:
        source = open_source(data, train=True)
    except DataError:
        return False
    known = run.metadata
    return (
        source.class_names == run.class_names
        and len(source) == known.num_examples
        and not fingerprint.change(known.fingerprint, fingerprint.fingerprint_of(source))
    )
