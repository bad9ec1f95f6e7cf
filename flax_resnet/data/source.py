"""Datasets with random access: a length, and encoded images and labels by index."""

import contextlib
import hashlib
import io
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from flax_resnet.config import Data
from flax_resnet.errors import DataError, one_line, suggestion

EMBEDDED = ("digits",)  # TFDS builders inside the package, prepared on first use without a network
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


class Records(NamedTuple):
    """Encoded images (JPEG, PNG, ... as stored) and their labels, int32 [n]."""

    images: list[bytes]
    labels: np.ndarray


class Source(Protocol):
    """What the pipeline needs of a dataset split."""

    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Returns the number of examples."""

    def read(self, indices: Sequence[int]) -> Records:
        """Reads the examples at these indices, in this order."""

    def describe(self, index: int) -> str:
        """Names an example for a person: a file, or a place in a split."""


def open_source(config: Data, *, train: bool, split: str = "") -> Source:
    """Opens the training or the evaluation split of the configured dataset.

    Args:
      config: the data section.
      train: which of the two configured splits; also the side of a folder's own split.
      split: another split instead.

    Raises:
      DataError: the dataset or split is unknown, absent, empty or of the wrong kind; one line.
    """
    split = split or (config.train_split if train else config.eval_split)
    if config.source == "folder":
        return FolderSource.open(config, split, train=train)
    return TfdsSource(config.name, split, config.data_dir)


class TfdsSource:
    """A split of a TFDS dataset prepared as array_record, such as ``train`` or ``train[:90%]``."""

    def __init__(self, name: str, split: str, data_dir: str = ""):
        import tensorflow_datasets as tfds

        self._split = split
        self._name = name
        builder = _builder(name, data_dir)
        features = builder.info.features
        if not {"image", "label"} <= set(features):
            raise DataError(
                f"data.name={name!r}: is not image classification (features: {', '.join(features)})"
            )
        try:
            self._records = builder.as_data_source(
                split=split, decoders={"image": tfds.decode.SkipDecoding()}
            )
        except (AssertionError, KeyError) as error:  # no folder, no splits
            raise DataError(_not_prepared(builder, name, data_dir)) from error
        except NotImplementedError as error:
            raise DataError(
                f"dataset {name!r} in {builder.data_path} is not stored as array_record, which random "
                f"access needs; prepare it again: {_preparation(name, data_dir)}"
            ) from error
        except ValueError as error:
            splits = ", ".join(builder.info.splits)
            raise DataError(
                f"split {split!r} of dataset {name!r}: {one_line(error)} (splits: {splits}; slices "
                "such as 'train[:90%]' are allowed)"
            ) from error
        if not len(self._records):
            raise DataError(f"split {split!r} of dataset {name!r} is empty")
        label = features["label"]
        self.class_names = tuple(getattr(label, "names", ()) or map(str, range(label.num_classes)))

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: Sequence[int]) -> Records:
        """Reads the examples at these indices, in this order."""
        # One by one: `__getitems__` is 1.6 times as fast (9,000 records/s), but tfds.testing.mock_data
        # (4.9.10) cannot imitate it.
        examples = [self._records[int(i)] for i in indices]
        labels = np.array([e["label"] for e in examples], np.int32)
        return Records([e["image"] for e in examples], labels)

    def describe(self, index: int) -> str:
        """Names an example for a person."""
        return f"example {index} of {self._name} {self._split}"


def _preparation(name: str, data_dir: str) -> str:
    where = f" --data_dir={data_dir}" if data_dir else ""
    return f"python -m flax_resnet.prepare --name={name}{where}"


def _builder(name: str, data_dir: str):
    """Returns the builder of a dataset; prepares an embedded one on first use."""
    import tensorflow_datasets as tfds

    where = str(pathlib.Path(data_dir).expanduser().resolve()) if data_dir else None
    as_array_record = {"data_dir": where, "file_format": "array_record"}
    try:
        if name in EMBEDDED:
            from flax_resnet.data.digits.digits_dataset_builder import Builder

            builder = Builder(data_dir=where)
            if builder.data_path.exists():
                return _with_alternatives(builder)
            builder = Builder(**as_array_record)
            tfds.disable_progress_bar()
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
            return builder
        builder = tfds.builder(name, data_dir=where)
        if builder.data_path.exists():
            return _with_alternatives(builder)
        return tfds.builder(name, **as_array_record)
    except tfds.core.DatasetNotFoundError as error:
        known = [*EMBEDDED, *tfds.list_builders(with_community_datasets=False)]
        hint = suggestion(name, known)
        hint = hint if hint.startswith("did") else "see https://www.tensorflow.org/datasets/catalog"
        raise DataError(f"data.name={name!r} is no TFDS dataset: {hint}") from error
    except OSError as error:
        raise DataError(
            f"dataset {name!r} cannot be written to {where}: {one_line(error)}"
        ) from error
    except (ValueError, AssertionError, ImportError) as error:
        raise DataError(f"data.name={name!r}: {one_line(error)}") from error


def _with_alternatives(builder: Any) -> Any:
    """Returns a builder that knows every format of its files.

    One made from a dataset's code reads the alternative formats of dataset_info.json, and then ignores them
    (TFDS 4.9.10); one made from the folder does not.
    """
    import tensorflow_datasets as tfds

    if builder.info.as_proto.alternative_file_formats:
        return tfds.builder_from_directory(builder.data_path)
    return builder


def _not_prepared(builder: object, name: str, data_dir: str) -> str:
    message = f"dataset {name!r} is not prepared: looked in {builder.data_path}; "
    if manual := builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        folder = builder.data_path.parents[1] / "downloads" / "manual"
        message += f"put the archives into {folder} ({' '.join(manual.split())}), then "
    return message + f"run: {_preparation(name, data_dir)}"


class FolderSource:
    """Images in one sub-folder per class; the sorted names of the sub-folders are the classes.

    Either ``path/train/CLASS/*`` with ``path/val/`` or ``path/test/`` beside it, or ``path/CLASS/*``, of
    which a fixed share, chosen by a hash of each file's name, is kept for evaluation: adding files moves no
    other file to the other side.
    """

    def __init__(self, files: list[pathlib.Path], labels: list[int], class_names: tuple[str, ...]):
        self._files = files
        self._labels = np.array(labels, np.int32)
        self.class_names = class_names

    @classmethod
    def open(cls, config: Data, split: str, *, train: bool) -> "FolderSource":
        """Lists the files of a split. Raises DataError as `open_source` does."""
        root = pathlib.Path(config.path).expanduser()
        if not root.is_dir():
            raise DataError(f"data.path={config.path!r}: is not a folder")
        if (root / "train").is_dir():
            default = split == Data().eval_split  # not asked for: take what the folder calls it
            names = [split, "val", "validation"] if default and not train else [split]
            found = [root / name for name in names if (root / name).is_dir()]
            if not found:
                raise DataError(
                    f"data.path={config.path!r}: has train/ but none of {', '.join(names)} "
                    f"(found: {', '.join(_class_folders(root))})"
                )
            files, labels, classes = _list_classes(found[0])
            expected = _class_folders(root / "train")
            if classes != tuple(expected):
                odd = sorted(set(classes) ^ set(expected))
                raise DataError(
                    f"{found[0]}: classes differ from those of train/: {', '.join(odd[:5])}"
                )
        else:
            if split not in (config.train_split, config.eval_split):
                raise DataError(
                    f"split {split!r} of data.path={config.path!r}: the folder has only "
                    f"{config.train_split!r} and {config.eval_split!r}"
                )
            files, labels, classes = _list_classes(root)
            kept = [_held_out(root, f, config.holdout) != train for f in files]
            files = [f for f, keep in zip(files, kept, strict=True) if keep]
            labels = [n for n, keep in zip(labels, kept, strict=True) if keep]
            if not files:
                side = "train on" if train else "evaluate on"
                raise DataError(f"data.path={config.path!r}: too few images to {side}")
        return cls(files, labels, classes)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Sequence[int]) -> Records:
        """Reads the examples at these indices, in this order."""
        labels = self._labels[np.asarray(indices, np.int64)]
        return Records([_contents(self._files[int(i)]) for i in indices], labels)

    def describe(self, index: int) -> str:
        """Names an example for a person."""
        return str(self._files[index])


def _contents(file: pathlib.Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""  # undecodable, so named and replaced like any other bad image


def _class_folders(root: pathlib.Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _list_classes(root: pathlib.Path) -> tuple[list[pathlib.Path], list[int], tuple[str, ...]]:
    classes = _class_folders(root)
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise DataError(
            f"{root}: needs one sub-folder of images per class, at least two; found {found}"
        )
    files, labels = [], []
    for label, name in enumerate(classes):
        here = sorted(f for f in (root / name).rglob("*") if f.suffix.lower() in SUFFIXES)
        if not here:
            raise DataError(f"{root / name}: holds no images ({' '.join(SUFFIXES)})")
        files += here
        labels += [label] * len(here)
    return files, labels, tuple(classes)


def _held_out(root: pathlib.Path, file: pathlib.Path, share: float) -> bool:
    digest = hashlib.sha256(str(file.relative_to(root)).encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32
