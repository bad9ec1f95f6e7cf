"""Sources of image files: a folder with one sub-folder per class, or a CSV file of paths and labels."""

import logging
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from flax_resnet.data.class_order import in_order
from flax_resnet.data.data_section import (
    EVAL_FRACTION,
    Data,
    SourceRow,
    split_setting,
)
from flax_resnet.data.fingerprint import (
    Fingerprint,
    array_checksum,
    file_sizes,
    sizes_fingerprint,
    texts_checksum,
)
from flax_resnet.data.folder_listing import (
    ClassFolders,
    class_folders,
    list_classes,
    log_once,
    some_of,
    sub_folders,
)
from flax_resnet.data.held_out import held_out
from flax_resnet.data.image_table import read_table
from flax_resnet.data.images import orientation
from flax_resnet.data.records import Records
from flax_resnet.data.split_names import find_split, split_folders
from flax_resnet.errors import DataError, printable
from flax_resnet.settings import REQUIRED

UNKNOWN = -1


class FileSource:
    """A source of image files and their labels.

    Args:
      root: folder of the dataset.
      files: one path per example, relative to the root.
      labels: class of each example, 0 to K-1.
      class_names: one name per class.
      exif: whether to turn images upright by their EXIF orientation.
    """

    def __init__(
        self,
        root: str,
        files: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        class_names: tuple[str, ...],
        *,
        exif: bool = True,
    ):
        self._root, self._files = root, files
        self._labels = np.array(labels, np.int32)
        self.class_names = class_names
        self.orientations = exif
        self._known = np.full(len(files), UNKNOWN, np.int8)  # orientations, set when first read

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Sequence[int] | np.ndarray) -> Records:
        """Read the examples at these indices, in this order."""
        indices = np.asarray(indices, np.int64)
        images = [_contents(self.path(i)) for i in indices]
        if self.orientations:
            for index, image in zip(indices, images, strict=True):
                if self._known[index] == UNKNOWN:
                    self._known[index] = orientation(image)
        turns = self._known[indices].astype(np.int32) if self.orientations else None
        return Records(images, self._labels[indices], turns)

    def labels(self) -> np.ndarray:
        """Return the label of every example, int32 [n]."""
        return self._labels

    def shared(self, other: "FileSource") -> int:
        """Return the number of files that are also in another split of the dataset."""
        return len({*self._files} & {*other._files})

    def path(self, index: int) -> str:
        """Return the path of an example's file."""
        return os.path.join(self._root, self._files[index])

    def file_names(self) -> list[str]:
        """Return the name of each example's file, without its folder."""
        return [os.path.basename(file) for file in self._files]

    def fingerprint(self) -> Fingerprint:
        """Return the fingerprint of the names, labels and sizes; names are relative to the folder of all files.

        Raises DataError if the file system does not answer.
        """
        # The common prefix of all is that of the first and the last one. (commonpath refuses a table with both
        # absolute and relative paths.)
        ends = [min(self._files), max(self._files)]
        shared = os.path.commonprefix(ends).rpartition("/")[0]  # noqa: RUF071
        names = (file[len(shared) :].lstrip("/") for file in self._files)
        return {
            "names": texts_checksum(names),
            "labels": array_checksum(self._labels),
            **sizes_fingerprint(file_sizes(self._root, self._files)),
        }

    def describe(self, index: int) -> str:
        """Return a readable name of an example: its file, in letters that can be printed."""
        return printable(self.path(index))


def folder_source(config: Data, split: str, train: bool) -> FileSource:
    """Open a folder with one sub-folder of images per class, named like the class; `in_order` orders the classes.

    The images are at ``path/train/CLASS/*``, with ``path/val/`` or ``path/test/`` beside train/; or at
    ``path/CLASS/*``, and `held_out` splits the files. A split for evaluation may lack images of some classes.

    Raises:
      DataError: as for `open_source`.
    """
    root = os.path.expanduser(config.path)
    if not os.path.isdir(root):
        raise DataError(
            "is not a folder",
            key="data.path",
            value=config.path,
            cure="if it was moved, name it anew: by data.path for training, by --dataset for evaluate and report",
        )
    folders = split_folders(root, (config.train_split, config.eval_split))
    if not folders:
        classes = _classes(root, "")
        files, labels = list_classes(root, "", classes, complete=True)
        chosen = _side(files, labels, classes.names, config, split, train=train)
        files, labels = [files[i] for i in chosen], labels[chosen]
        return FileSource(root, files, labels, classes.names, exif=config.exif)
    own = find_split(folders, split, train=train)
    other = find_split(folders, config.train_split, train=True)
    if own is None or other is None:
        missing = split if own is None else config.train_split
        raise DataError(
            f"has no folder in {printable(root)} (found: {', '.join(sub_folders(root))})",
            key=split_setting(config, missing),
            value=missing,
            cure="name them train, and test or val, or set data.train_split and data.eval_split",
        )
    classes = _classes(root, other)
    if own == other:
        files, labels = list_classes(root, own, classes, complete=True)
    else:
        files, labels = _list_part(root, own, other, classes.names)
    return FileSource(root, files, labels, classes.names, exif=config.exif)


def csv_source(config: Data, split: str, train: bool) -> FileSource:
    """Open a CSV file with the columns path and label, and optionally split.

    Paths are relative to the CSV file's folder. The labels of the training split are the classes; `in_order` orders
    them. Without a column `split`, `held_out` splits the rows.

    Raises:
      DataError: as for `open_source`.
    """
    file = pathlib.Path(config.path).expanduser()
    rows, has_splits = read_table(file, key="data.path")
    chosen, learnt = rows, rows
    if has_splits:
        names = sorted({row.split for row in rows} - {""})
        own = find_split(names, split, train=train)
        if own is None:
            problem = f"has no rows in {printable(file)} (found: {', '.join(names)})"
            raise DataError(problem, key=split_setting(config, split), value=split)
        if unused := sum(not row.split for row in rows):
            log_once(f"{file}: {unused:,} rows have no split and are not used")
        chosen = [row for row in rows if row.split == own]
        other = find_split(names, config.train_split, train=True)
        # A table of evaluation images alone may be evaluated.
        learnt = [row for row in rows if row.split == other] if other is not None else chosen
    classes = in_order({row.label for row in learnt})
    if len(classes) < 2:
        raise DataError(f"needs at least two classes; found {len(classes)}", key=file)
    number = {name: label for label, name in enumerate(classes)}
    if odd := next((row for row in chosen if row.label not in number), None):
        raise DataError(
            f"line {odd.line} has the class {odd.label!r}, which split {config.train_split!r} does not have",
            key=file,
        )
    labels = np.array([number[row.label] for row in chosen], np.int32)
    if has_splits:
        _report_absent(str(file), split, classes, labels)
    else:
        paths = [row.path for row in chosen]
        side = _side(paths, labels, classes, config, split, train=train)
        chosen = [chosen[i] for i in side]
        labels = labels[side]
    for row in chosen[:100]:  # enough to detect a wrong folder
        if not (path := file.parent / row.path).is_file():
            raise DataError(f"line {row.line} names {printable(path)}: no such file", key=file)
    files = [row.path for row in chosen]
    return FileSource(str(file.parent), files, labels, classes, exif=config.exif)


def splits_of(path: str, named: Sequence[str] = ()) -> list[str]:
    """Return the names of the splits in a folder or CSV file; empty if it has none.

    Args:
      path: a folder or a CSV file.
      named: names of splits that the user gives.

    Raises:
      DataError: the folder or file cannot be read.
    """
    root = pathlib.Path(path).expanduser()
    if not root.is_file():
        return split_folders(root, named) if root.is_dir() else []
    return sorted({row.split for row in read_table(root, key="data.path").rows} - {""})


def _side(
    names: Sequence[str],
    labels: np.ndarray,
    classes: tuple[str, ...],
    config: Data,
    split: str,
    *,
    train: bool,
) -> np.ndarray:
    """Return the indices of the files in one of the two splits that `held_out` makes."""
    if split not in (config.train_split, config.eval_split):
        raise DataError(
            key=split_setting(config, split),
            value=split,
            allowed=f"{config.train_split!r} or {config.eval_split!r}, the only splits of "
            f"data.path={config.path!r}",
        )
    held = held_out(names, labels, config.eval_fraction, config.split_seed)
    if 0 < config.eval_fraction < 1:
        _report_absent(config.path, config.eval_split, classes, labels[held])
    chosen = np.flatnonzero(held != train)
    if not len(chosen):
        side = "train on" if train else "evaluate on"
        raise DataError(f"has too few images to {side}", key="data.path", value=config.path)
    return chosen


def _report_absent(path: str, split: str, classes: tuple[str, ...], labels: np.ndarray) -> None:
    """Log the classes without an image in a split for evaluation, in one line."""
    counts = np.bincount(labels, minlength=len(classes))
    absent = [name for name, count in zip(classes, counts, strict=True) if not count]
    if absent:
        log_once(
            f"{printable(path)}: split {split!r} has no image of {len(absent):,} of {len(classes):,} classes "
            f"({some_of(absent)})",
            level=logging.WARNING,
        )


def _contents(file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except OSError:
        return b""  # cannot be decoded, so it is reported and replaced like any other bad image


def _classes(root: str, folder: str) -> ClassFolders:
    """Return the classes of the training split. Raise DataError if there are fewer than two."""
    classes = class_folders(root, folder)
    if len(names := classes.names) < 2:
        raise DataError(
            "needs one sub-folder of images per class, at least two; found "
            + (f"only {names[0]!r}" if names else "none"),
            key=pathlib.Path(root, folder),
        )
    return classes


def _list_part(
    root: str, own: str, other: str, classes: tuple[str, ...]
) -> tuple[list[str], np.ndarray]:
    """List a split for evaluation, with the classes of the training split in the folder `other`.

    Raises:
      DataError: the split has another class, or no images.
    """
    found = class_folders(root, own)
    if odd := [name for name in found.names if name not in {*classes}]:
        raise DataError(
            f"has {len(odd):,} classes that {other}/ does not have: {some_of(odd)}",
            key=pathlib.Path(root, own),
        )
    files, labels = list_classes(root, own, found)
    if not files:
        raise DataError("holds no images", key=pathlib.Path(root, own))
    numbers = np.array([classes.index(name) for name in found.names], np.int32)
    labels = numbers[labels]
    _report_absent(root, own, classes, labels)
    return files, labels


def _has_splits(config: Data) -> bool:
    return not pathlib.Path(config.path).expanduser().exists() or bool(
        splits_of(config.path, (config.train_split, config.eval_split))
    )


USES = {"path": REQUIRED, "eval_fraction": EVAL_FRACTION}
ROWS = (
    SourceRow(
        name="folder",
        help="a folder of images: CLASS/*, or train/CLASS/* beside val/ or test/",
        uses=USES,
        open=folder_source,
        location="path",
        has_kind=lambda text: pathlib.Path(text).expanduser().is_dir(),
        has_splits=_has_splits,
    ),
    SourceRow(
        name="csv",
        help="a CSV file with the columns path and label, and optionally split",
        uses=USES,
        open=csv_source,
        location="path",
        has_kind=lambda text: pathlib.Path(text).expanduser().is_file(),
        has_splits=_has_splits,
    ),
)
