"""Sources of image files: a folder with one sub-folder per class, or a CSV file of paths and labels."""

import csv
import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np

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
    """Open a folder with one sub-folder of images per class; the sorted names of the sub-folders are the classes.

    The images are at ``path/train/CLASS/*``, with ``path/val/`` or ``path/test/`` beside train/; or at
    ``path/CLASS/*``, and `held_out` splits the files.

    Raises:
      DataError: as for `open_source`.
    """
    root = pathlib.Path(config.path).expanduser()
    if not root.is_dir():
        raise DataError("is not a folder", key="data.path", value=config.path)
    if not (root / "train").is_dir():
        folders = _class_folders(root)
        if folders and {*folders} <= {"test", "val", "validation"}:
            raise DataError(
                f"has no train/ (found: {', '.join(folders)})", key="data.path", value=config.path
            )
        files, labels, classes = _list_classes(root)
        names = [str(file.relative_to(root)) for file in files]
        chosen = _side(names, config, split, train=train)
        files, labels = [files[i] for i in chosen], [labels[i] for i in chosen]
        return FileSource(files, labels, classes, exif=config.exif)
    wanted = _called(split, train=train)
    split_folders = [root / name for name in wanted if (root / name).is_dir()]
    if not split_folders:
        raise DataError(
            f"has train/ but none of {', '.join(wanted)} (found: {', '.join(_class_folders(root))})",
            key="data.path",
            value=config.path,
        )
    files, labels, classes = _list_classes(split_folders[0])
    expected = _class_folders(root / "train")
    if classes != tuple(expected):
        odd = sorted(set(classes) ^ set(expected))
        raise DataError(
            f"its classes differ from those of train/: {', '.join(odd[:5])}", key=split_folders[0]
        )
    return FileSource(files, labels, classes, exif=config.exif)


def csv_source(config: Data, split: str, train: bool) -> FileSource:
    """Open a CSV file with the columns path and label, and optionally split.

    Paths are relative to the CSV file's folder. The classes are the sorted labels, in numerical order if all labels
    are whole numbers. Without a column `split`, `held_out` splits the rows.

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
    numbers = all(name.isdecimal() for name in names)
    classes = tuple(sorted(names, key=lambda name: (int(name) if numbers else 0, name)))
    label = {name: number for number, name in enumerate(classes)}
    if "split" in columns:
        sides = [(row["split"] or "").strip() for row in rows]
        wanted = _called(split, train=train)
        present = next((name for name in wanted if name in sides), None)
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


def splits_of(path: str) -> list[str]:
    """Return the names of the splits in a folder or CSV file; empty if it has none."""
    root = pathlib.Path(path).expanduser()
    if not root.is_file():
        return _class_folders(root) if (root / "train").is_dir() else []
    with root.open(newline="", encoding="utf-8-sig", errors="replace") as opened:
        return sorted({(row.get("split") or "").strip() for row in csv.DictReader(opened)} - {""})


def _called(split: str, *, train: bool) -> list[str]:
    """Return the split names to look for; for the default evaluation split, also val and validation."""
    return [split, "val", "validation"] if split == Data().eval_split and not train else [split]


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
    classes = _class_folders(root)
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
    return files, labels, tuple(classes)


def _has_splits(config: Data) -> bool:
    return not pathlib.Path(config.path).expanduser().exists() or bool(splits_of(config.path))


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
