"""The labels of record files, which are read from the records once and then from a cache."""

import logging
import os
import pathlib
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from flax_resnet.data.array_cache import CACHE, file_identity, load_array, store_array
from flax_resnet.data.record_files import ShardedRecords
from flax_resnet.errors import one_line

log = logging.getLogger("flax_resnet")

FOLDER = ".flax_resnet_labels"  # in the dataset's folder, so that all its users share the labels
CHUNK = 256  # records in memory at a time


def stored_labels(
    records: ShardedRecords, label_of: Callable[[bytes], int], *, folder: pathlib.Path, feature: str
) -> np.ndarray:
    """Return the label of every record, int32 [n]. Only files without stored labels are read.

    The labels of each file are stored in the dataset's folder, or in the user's cache if that folder is read-only.
    Stored labels are used only if the size and the time of the file, their number and their checksum are right.

    Args:
      records: the records.
      label_of: returns the label of a record. Raises DataError if the record is corrupted.
      folder: the dataset's folder.
      feature: name of the feature with the label.

    Raises:
      DataError: a file is corrupted.
    """
    counts = {path: count for path, _, _, count in records.parts}
    loaded = {path: _load(path, count, folder, feature) for path, count in counts.items()}
    found = {path: labels for path, labels in loaded.items() if labels is not None}
    missing = [path for path in counts if path not in found]
    if missing:
        total = sum(counts[path] for path in missing)
        bar = tqdm(total=total, unit=" records", unit_scale=True, desc="labels", disable=None)
        with bar:
            for path in missing:
                labels: list[int] = []
                for start in range(0, counts[path], CHUNK):
                    chunk = range(start, min(start + CHUNK, counts[path]))
                    labels += map(label_of, records.read_file(path, chunk))
                    bar.update(len(chunk))
                found[path] = np.array(labels, np.int32)
                _store(path, found[path], folder, feature)
    parts = [found[path][skip : skip + take] for path, skip, take, _ in records.parts]
    return np.concatenate([np.zeros(0, np.int32), *parts])


def _load(path: str, count: int, folder: pathlib.Path, feature: str) -> np.ndarray | None:
    if not os.path.exists(path):
        return None  # reading the records raises the error
    for place, identity in _places(path, folder, feature):
        labels = load_array(place, identity)
        if labels is not None and labels.shape == (count,) and labels.dtype == np.int32:
            return labels
    return None


def _store(path: str, labels: np.ndarray, folder: pathlib.Path, feature: str) -> None:
    problem = ""
    for place, identity in _places(path, folder, feature):
        try:
            store_array(place, identity, labels)
            return
        except OSError as error:
            problem = one_line(error)
    log.warning("the labels of %s cannot be stored, so each start reads them: %s", path, problem)


def _places(path: str, folder: pathlib.Path, feature: str) -> list[tuple[pathlib.Path, str]]:
    """Return the folders for the labels of a file, with the identity of the labels in each."""
    # The dataset's folder may be moved or mounted elsewhere. Many datasets share the user's cache.
    names = ((folder / FOLDER, os.path.basename(path)), (CACHE / "labels", os.path.realpath(path)))
    return [(place, f"labels {feature} {file_identity(path, name)}") for place, name in names]
