"""Sources of Hugging Face datasets: a local folder of Parquet files, or a dataset of the hub."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from flax_resnet.data.class_order import in_order, normal_form
from flax_resnet.data.data_section import Data, SourceRow, split_setting
from flax_resnet.data.fingerprint import Fingerprint, array_checksum, sizes_fingerprint
from flax_resnet.data.images import orientation
from flax_resnet.data.records import Records
from flax_resnet.errors import ConfigError, DataError, one_line
from flax_resnet.settings import REQUIRED


class HfSource:
    """A split of a Hugging Face dataset, such as ``train``, ``train[:90%]`` or ``train+validation``.

    The images are read as they are stored, by index, from the memory-mapped cache of the `datasets` library.

    Args:
      config: the data section: path, name, and the columns for image and label.
      split: split expression of the `datasets` library.

    Raises:
      ConfigError: the `datasets` library is not installed.
      DataError: there is no such dataset or split, or it has no images or labels; one line.
    """

    def __init__(self, config: Data, split: str):
        whole = _load(config)
        import datasets

        self._path, self._split, self.orientations = config.path, split, config.exif
        first = next(iter(whole.values()))
        self._image = _column(first, "image", config.image_feature, config)
        self._label = _column(first, "label", config.label_feature, config)
        self._ranges = _ranges(config, split, {name: len(part) for name, part in whole.items()})
        parts = [whole[name].select(range(start, stop)) for name, start, stop in self._ranges]
        if not sum(map(len, parts)):
            raise DataError(
                f"is empty in {config.path!r}", key=split_setting(config, split), value=split
            )
        stored = datasets.Image(decode=False)
        joined = datasets.concatenate_datasets(parts).select_columns([self._image, self._label])
        self._images = joined.select_columns(self._image).cast_column(self._image, stored)
        self.class_names, numbers = _classes(whole, self._label)
        self._labels = np.array([numbers.get(x, -1) for x in joined[self._label]], np.int32)
        if missing := int((self._labels < 0).sum()):
            raise DataError(
                f"{missing:,} of its {len(joined):,} examples have no label",
                key=split_setting(config, split),
                value=split,
            )

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, indices: Sequence[int] | np.ndarray) -> Records:
        """Read the examples at these indices, in this order."""
        indices = np.asarray(indices, np.int64)
        images = [_contents(image) for image in self._images[indices.tolist()][self._image]]
        turns = [orientation(image) for image in images] if self.orientations else None
        known = None if turns is None else np.array(turns, np.int32)
        return Records(images, self._labels[indices], known)

    def labels(self) -> np.ndarray:
        """Return the label of every example, int32 [n]."""
        return self._labels

    def shared(self, other: "HfSource") -> int:
        """Return the number of examples that are also in another split of the dataset."""
        return sum(
            max(0, min(stop, end) - max(start, begin))
            for name, start, stop in self._ranges
            for theirs, begin, end in other._ranges
            if name == theirs
        )

    def fingerprint(self) -> Fingerprint:
        """Return the fingerprint of labels and sizes. Only the table's offsets are read, not the images."""
        import pyarrow.compute

        encoded = pyarrow.compute.struct_field(self._images.data.column(self._image), "bytes")
        sizes = pyarrow.compute.fill_null(pyarrow.compute.binary_length(encoded), -1)
        return {
            "labels": array_checksum(self._labels),
            **sizes_fingerprint(np.asarray(sizes, np.int64)),
        }

    def describe(self, index: int) -> str:
        """Return a readable name of an example."""
        return f"{self._path}: {self._split}/example {index}"


def _load(config: Data) -> Any:
    """Return all splits of the dataset, {name: Dataset}."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "needs the datasets library",
            key="data.source",
            value="hf",
            cure="pip install 'flax_resnet[hf]'",
        ) from error
    try:
        return datasets.load_dataset(os.path.expanduser(config.path), config.name or None)
    except Exception as error:  # the library raises many types for one mistake
        raise DataError(
            f"cannot be loaded: {one_line(error)}", key="data.path", value=config.path
        ) from error


def _ranges(config: Data, split: str, lengths: dict[str, int]) -> list[tuple[str, int, int]]:
    """Return the (split, first row, row after the last) that a split expression names."""
    import datasets

    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        raise DataError(
            key=split_setting(config, split),
            value=split,
            allowed=f"one of the splits: {', '.join(lengths)}; or a slice such as 'train[:90%]'",
        ) from error
    return [(part.splitname, part.from_ or 0, part.to) for part in parts]


def _column(part: Any, role: str, wanted: str, config: Data) -> str:
    """Return the column of the image or label: the requested one, else the one named `role`, else the only one."""
    import datasets

    def fits(feature: Any) -> bool:
        if role == "image":
            is_struct = isinstance(feature, dict) and {"bytes", "path"} <= feature.keys()
            return isinstance(feature, datasets.Image) or is_struct
        if isinstance(feature, datasets.ClassLabel):
            return True
        return isinstance(feature, datasets.Value) and feature.dtype.startswith(
            ("int", "uint", "bool", "string")
        )

    candidates = [name for name, feature in part.features.items() if fits(feature)]
    if wanted in candidates:
        return wanted
    if not wanted and (role in candidates or len(candidates) == 1):
        return role if role in candidates else candidates[0]
    key = f"data.{role}_feature"
    if not candidates:
        found = ", ".join(part.features)
        raise DataError(
            f"has no {role} column (columns: {found})", key="data.path", value=config.path
        )
    problem = f"is no {role} column" if wanted else f"{config.path!r} has several {role} columns"
    raise DataError(problem, key=key, value=wanted, allowed=candidates)


def _classes(whole: Any, column: str) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Return the class names, and {value of the column: number of the class}.

    A column without class names has those of its values in all splits, in `normal_form` and in ascending order. A
    blank value is no class.
    """
    import datasets

    feature = next(iter(whole.values())).features[column]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names), {number: number for number in range(feature.num_classes)}
    values = {x for part in whole.values() for x in part.unique(column) if x is not None}
    name_of = {x: name for x in values if (name := normal_form(str(x)))}
    names = in_order(name_of.values())
    numbers = {name: number for number, name in enumerate(names)}
    return names, {x: numbers[name] for x, name in name_of.items()}


def _contents(image: Any) -> bytes:
    """Return the encoded image; empty, which cannot be decoded, if it is missing."""
    if image and image.get("bytes"):
        return image["bytes"]
    try:
        with open(image["path"], "rb") as file:
            return file.read()
    except (OSError, TypeError):
        return b""


def _evaluation_split(config: Data) -> str:
    names = _load(config).keys()
    return "test" if "test" in names and "validation" not in names else "validation"


ROWS = (
    SourceRow(
        name="hf",
        help="a Hugging Face dataset: a folder of Parquet files, or a name of the hub",
        uses={"path": REQUIRED, "name": "", "image_feature": "", "label_feature": ""},
        open=lambda config, split, train: HfSource(config, split),
        location="path",
        eval_split=_evaluation_split,
    ),
)
