"""Open all splits of a dataset, each with a digest that identifies its content."""

import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from flax_resnet.data import sampling
from flax_resnet.data.data_section import Data
from flax_resnet.data.open import open_source
from flax_resnet.data.preparation import not_prepared
from flax_resnet.data.records import Source
from flax_resnet.data.sources.files import FileSource, splits_of
from flax_resnet.data.sources.tfds import find_builder
from flax_resnet.data.split_names import EVALUATION, TRAINING
from flax_resnet.errors import DataError

# {name of a split in a folder or CSV file, in lower case: name of the split in TFDS}
TFDS_NAMES = {
    **dict.fromkeys(TRAINING, "train"),
    **dict.fromkeys(EVALUATION, "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class Split(NamedTuple):
    """One split of a dataset.

    Attributes:
      source: the examples.
      order: int64 [n], a permutation: the order in which to write the examples.
      identity: a digest; it differs if the examples or their order in the source differ.
    """

    source: Source
    order: np.ndarray
    identity: str


def tfds_splits(name: str, data_dir: str) -> dict[str, Split]:
    """Open all splits of a prepared TFDS dataset, in the order of their records.

    Args:
      name: TFDS name, name/config or name:version.
      data_dir: TFDS data folder; empty for TFDS's default.

    Raises:
      DataError: as for `open_source`.
    """
    builder = find_builder(name, data_dir)
    infos = {key: info for key, info in builder.info.splits.items() if info.num_examples}
    if not infos:
        raise not_prepared(builder, name, data_dir)
    splits = {}
    for key, info in infos.items():
        source = open_source(Data(name=name, data_dir=data_dir), train=key == "train", split=key)
        identity = f"{builder.info.full_name} {key} {info.shard_lengths} {int(info.num_bytes)}"
        splits[key] = Split(source, np.arange(len(source)), _digest([identity]))
    return splits


def file_splits(path: str, eval_fraction: float) -> dict[str, Split]:
    """Open all splits of a folder of images, or of a CSV file of paths and labels.

    Files are often sorted by class. They are shuffled with a fixed seed, so that a slice such as ``train[:10%]``
    holds all classes.

    Args:
      path: a folder or a CSV file. A folder has train/ and val/, validation/ or test/, each with one sub-folder per
        class; or it has one sub-folder per class itself. A CSV file may have a column `split`. Without splits, a
        hash of each file's name decides whether the file belongs to ``test`` or ``train``.
      eval_fraction: share of the files for ``test`` in that case, 0.01 to 0.99.

    Raises:
      DataError: as for `open_source`.
    """
    root = pathlib.Path(path).expanduser()
    kind = "csv" if root.is_file() else "folder"
    own = splits_of(path)
    names = {name: TFDS_NAMES.get(name.casefold(), name) for name in own}
    names = names or {"train": "train", "test": "test"}
    if odd := [key for key in names.values() if not key.isidentifier()]:
        raise DataError(
            f"split {odd[0]!r} is not a valid TFDS name",
            key=root,
            cure="use letters, digits and _ only",
        )
    if len(set(names.values())) < len(names):
        twice = [name for name, key in names.items() if list(names.values()).count(key) > 1]
        raise DataError(
            f"has {' and '.join(twice)} for one split",
            key=root,
            cure="remove or rename all but one",
        )
    of = {key: name for name, key in names.items()}
    config = Data(
        source=kind,
        path=path,
        eval_fraction=eval_fraction,
        train_split=of.get("train", Data.train_split),
    )
    splits = {}
    for name, key in names.items():
        source = open_source(config, train=key == "train", split=name)
        assert isinstance(source, FileSource)  # the sources of `kind` are
        index = np.arange(len(source), dtype=np.uint32)
        shuffled = sampling.permute(np, index, size=len(source), seed=0, epoch=0).astype(np.int64)
        files = (
            _file_identity(root if root.is_dir() else root.parent, source.path(i))
            for i in range(len(source))
        )
        splits[key] = Split(source, shuffled, _digest(files))
    return splits


def _file_identity(root: pathlib.Path, file: str) -> str:
    try:
        status = os.stat(file)
    except OSError:  # the packing reports the file as unreadable
        return f"{os.path.relpath(file, root)} -"
    return f"{os.path.relpath(file, root)} {status.st_size} {status.st_mtime_ns}"


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()
