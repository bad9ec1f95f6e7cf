"""Sources of image files: a folder with one sub-folder per class, or a CSV file of paths and labels."""

import csv
import hashlib
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
from flax_resnet.data.images import orientation
from flax_resnet.data.records import Records
from flax_resnet.errors import DataError, one_line
from flax_resnet.settings import REQUIRED

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
UNKNOWN = -1
# Usual names of splits, in lower case; the first that exists is used.
TRAINING = ("train", "training")
EVALUATION = ("test", "testing", "val", "validation", "valid", "eval", "evaluation", "dev")


class FileSource:
    """A source of image files and their labels.

    Args:
      files: one path per example.
      labels: class of each example, 0 to K-1.
      class_names: one name per class.
      exif: whether to turn images upright by their EXIF orientation.
    """

    def __init__(
        self,
        files: Sequence[pathlib.Path],
        labels: Sequence[int],
        class_names: tuple[str, ...],
        *,
        exif: bool = True,
    ):
        self._files = files
        self._labels = np.array(labels, np.int32)
        self.class_names = class_names
        self.orientations = exif
        self._known = np.full(len(files), UNKNOWN, np.int8)  # orientations, set when first read

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Sequence[int] | np.ndarray) -> Records:
        """Read the examples at these indices, in this order."""
        indices = np.asarray(indices, np.int64)
        images = [_contents(self._files[i]) for i in indices]
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
        """Return the number of files that are also in another split."""
        return len({*self._files} & {*other._files})

    def describe(self, index: int) -> str:
        """Return a readable name of an example."""
        return str(self._files[index])


def folder_source(config: Data, split: str, train: bool) -> FileSource:
    """Open a folder with one sub-folder of images per class, named like the class; `in_order` orders the classes.

    The images are at ``path/train/CLASS/*``, with ``path/val/`` or ``path/test/`` beside train/; or at
    ``path/CLASS/*``, and `held_out` splits the files.

    Raises:
      DataError: as for `open_source`.
    """
    root = pathlib.Path(config.path).expanduser()
    if not root.is_dir():
        raise DataError("is not a folder", key="data.path", value=config.path)
    folders = split_folders(root, (config.train_split, config.eval_split))
    if not folders:
        files, labels, classes = _list_classes(root)
        names = [str(file.relative_to(root)) for file in files]
        chosen = _side(names, config, split, train=train)
        files, labels = [files[i] for i in chosen], [labels[i] for i in chosen]
        return FileSource(files, labels, classes, exif=config.exif)
    own = find_split(folders, split, train=train)
    other = find_split(folders, config.train_split, train=True)
    if own is None or other is None:
        missing = split if own is None else config.train_split
        raise DataError(
            f"has no folder for the split {missing!r} (found: {', '.join(_class_folders(root))})",
            key="data.path",
            value=config.path,
            cure="name them train, and test or val, or set data.train_split and data.eval_split",
        )
    files, labels, classes = _list_classes(root / own)
    expected = in_order(_class_folders(root / other))
    if classes != expected:
        odd = sorted(set(classes) ^ set(expected))
        raise DataError(
            f"its classes differ from those of {other}/: {', '.join(odd[:5])}", key=root / own
        )
    return FileSource(files, labels, classes, exif=config.exif)


def csv_source(config: Data, split: str, train: bool) -> FileSource:
    """Open a CSV file with the columns path and label, and optionally split.

    Paths are relative to the CSV file's folder. The labels are the classes; `in_order` orders them. Without a
    column `split`, `held_out` splits the rows.

    Raises:
      DataError: as for `open_source`.
    """
    file = pathlib.Path(config.path).expanduser()
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            table = csv.DictReader(opened)
            rows, columns = list(table), table.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"cannot be read: {one_line(error)}", key="data.path", value=config.path
        ) from error
    if missing := {"path", "label"} - set(columns):
        raise DataError(
            f"has no column {' or '.join(sorted(missing))}",
            key="data.path",
            value=config.path,
            cure="name the columns path and label in its first line (split is optional)",
        )
    for number, row in enumerate(rows, 2):
        if lacking := [key for key in ("path", "label") if not row[key]]:
            raise DataError(f"line {number} has no {' and no '.join(lacking)}", key=file)
    names = {row["label"].strip() for row in rows}
    if len(names) < 2:
        raise DataError(f"needs at least two classes; found {len(names)}", key=file)
    classes = in_order(names)
    label = {name: number for number, name in enumerate(classes)}
    if "split" in columns:
        sides = [(row["split"] or "").strip() for row in rows]
        present = find_split(sorted({*sides} - {""}), split, train=train)
        if present is None:
            listed = ", ".join(sorted(set(sides)))
            raise DataError(f"has no rows of split {split!r} (found: {listed})", key=file)
        chosen = [i for i, side in enumerate(sides) if side == present]
    else:
        chosen = _side([row["path"] for row in rows], config, split, train=train)
    files = [file.parent / rows[i]["path"] for i in chosen]
    for i, path in list(zip(chosen, files, strict=True))[:100]:  # enough to detect a wrong folder
        if not path.is_file():
            raise DataError(f"line {i + 2} names {path}: no such file", key=file)
    return FileSource(
        files,
        [label[rows[i]["label"].strip()] for i in chosen],
        classes,
        exif=config.exif,
    )


def splits_of(path: str, named: Sequence[str] = ()) -> list[str]:
    """Return the names of the splits in a folder or CSV file; empty if it has none.

    Args:
      path: a folder or a CSV file.
      named: names of splits that the user gives.
    """
    root = pathlib.Path(path).expanduser()
    if not root.is_file():
        return split_folders(root, named) if root.is_dir() else []
    with root.open(newline="", encoding="utf-8-sig", errors="replace") as opened:
        return sorted({(row.get("split") or "").strip() for row in csv.DictReader(opened)} - {""})


def split_folders(root: pathlib.Path, named: Sequence[str] = ()) -> list[str]:
    """Return the sub-folders of a folder that are splits, not classes; [] if there are none.

    The usual names in any case are splits if there is one for training and one for evaluation, if there is nothing
    else, or if the one for training holds folders itself. Otherwise they are classes: a train is also a vehicle.

    Args:
      root: the folder.
      named: names of splits that the user gives; folders of these names are splits.
    """
    folders = _class_folders(root)
    given = {name.casefold() for name in named}
    train, held = (
        [name for name in folders if name.casefold() in names] for names in (TRAINING, EVALUATION)
    )
    unusual = [name for name in folders if name.casefold() in given - {*TRAINING, *EVALUATION}]
    usual = [name for name in folders if name in train + held]
    alone = bool(usual) and len(usual) == len(folders)
    nested = any(child.is_dir() for name in train for child in (root / name).iterdir())
    is_split = bool(unusual or (train and held) or alone or nested)
    return [name for name in folders if name in usual + unusual] if is_split else []


def find_split(names: Sequence[str], wanted: str, *, train: bool) -> str | None:
    """Return the name that stands for a split: the same in any case, or for a default split another usual name."""
    usual: tuple[str, ...] = ()
    if wanted == (Data.train_split if train else Data.eval_split):
        usual = TRAINING if train else EVALUATION
    by_case = {name.casefold(): name for name in reversed(names)}
    candidates = (by_case.get(name) for name in (wanted.casefold(), *usual))
    return wanted if wanted in names else next(filter(None, candidates), None)


def held_out(name: str, share: float, seed: int) -> bool:
    """Return whether a file is held out for evaluation, by a hash of its name.

    New files do not move existing files between the splits.
    """
    text = f"{seed}:{name}" if seed else name
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def _side(names: Sequence[str], config: Data, split: str, *, train: bool) -> list[int]:
    """Return the indices of the files in one of the two splits that `held_out` makes."""
    if split not in (config.train_split, config.eval_split):
        raise DataError(
            key=split_setting(config, split),
            value=split,
            allowed=f"{config.train_split!r} or {config.eval_split!r}, the only splits of "
            f"data.path={config.path!r}",
        )
    chosen = [
        i
        for i, name in enumerate(names)
        if held_out(name, config.eval_fraction, config.split_seed) != train
    ]
    if not chosen:
        side = "train on" if train else "evaluate on"
        raise DataError(f"has too few images to {side}", key="data.path", value=config.path)
    return chosen


def _contents(file: pathlib.Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""  # cannot be decoded, so it is reported and replaced like any other bad image


def _class_folders(root: pathlib.Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _list_classes(root: pathlib.Path) -> tuple[list[pathlib.Path], list[int], tuple[str, ...]]:
    classes = in_order(_class_folders(root))
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise DataError(
            f"needs one sub-folder of images per class, at least two; found {found}", key=root
        )
    files, labels = [], []
    for label, name in enumerate(classes):
        here = sorted(
            f
            for f in (root / name).rglob("*")
            if f.suffix.lower() in SUFFIXES and not f.name.startswith(".") and f.is_file()
        )
        if not here:
            raise DataError(f"holds no images ({' '.join(SUFFIXES)})", key=root / name)
        files += here
        labels += [label] * len(here)
    return files, labels, classes


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
