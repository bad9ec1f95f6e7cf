"""The interface of every source of examples: a length, and encoded images and labels by index."""

import io
from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

import numpy as np
from PIL import Image

from flax_resnet.errors import DataError


class Records(NamedTuple):
    """Encoded images and labels of some examples.

    Attributes:
      images: images as stored: JPEG, PNG, BMP, WebP or GIF.
      labels: int32 [n].
      orientations: int32 [n], EXIF orientations from 1 to 8, or 0 for none; None to leave all images as stored.
    """

    images: list[bytes]
    labels: np.ndarray
    orientations: np.ndarray | None = None


class Source(Protocol):
    """A dataset split with random access.

    Attributes:
      class_names: one name per class.
      orientations: whether `read` returns EXIF orientations.
    """

    class_names: tuple[str, ...]
    orientations: bool

    def __len__(self) -> int:
        """Return the number of examples."""

    def read(self, indices: Sequence[int] | np.ndarray) -> Records:
        """Read the examples at these indices, in this order."""

    def labels(self) -> np.ndarray:
        """Return the label of every example, int32 [n]."""

    def describe(self, index: int) -> str:
        """Return a readable name of an example: a file, or a position in a split."""


class StoredSource(Source, Protocol):
    """A split of a dataset on disk."""

    def shared(self, other: Self) -> int:
        """Return the number of examples that are also in another split of the dataset."""


def check_labels(source: Source, indices: np.ndarray, labels: np.ndarray) -> None:
    """Raise DataError if an example has no label, which TFDS marks by -1, or the number of no class.

    Args:
      source: the source.
      indices: indices of the examples.
      labels: their labels.
    """
    classes = len(source.class_names)
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        index, label = int(indices[wrong][0]), int(labels[wrong][0])
        raise DataError(
            f"has no label ({label})" if label < 0 else f"has the label {label}",
            key=source.describe(index),
            allowed=f"labelled from 0 to {classes - 1}",
        )


def read_labelled(source: Source, indices: np.ndarray) -> Records:
    """Read the examples at these indices. Raise DataError as `check_labels` does."""
    records = source.read(indices)
    check_labels(source, indices, records.labels)
    return records


def as_bmp(image: Image.Image) -> bytes:
    """Encode an image of mode RGB as BMP, which is a header followed by the pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    return buffer.getvalue()


class Relabelled:
    """A source whose classes have other numbers, those that they have in another list of classes.

    Args:
      source: the source.
      class_names: the other list.
      order: the number of each class of the source in the other list.

    Attributes:
      source: as the argument.
    """

    def __init__(self, source: Source, class_names: Sequence[str], order: Sequence[int]) -> None:
        self.class_names, self.orientations = tuple(class_names), source.orientations
        self.source, self._order = source, np.array(order, np.int32)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: Sequence[int] | np.ndarray) -> Records:
        """Read the examples at these indices, in this order. Raise DataError as `check_labels` does."""
        records = read_labelled(self.source, np.asarray(indices))
        return records._replace(labels=self._order[records.labels])

    def labels(self) -> np.ndarray:
        """Return the new label of every example, int32 [n]. Raise DataError as `check_labels` does."""
        labels = self.source.labels()
        check_labels(self.source, np.arange(len(labels)), labels)
        return self._order[labels]

    def describe(self, index: int) -> str:
        """Return a readable name of an example."""
        return self.source.describe(index)


class Unlabelled(Relabelled):
    """A source whose labels are not used: all are 0."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, source.class_names, ())

    def read(self, indices: Sequence[int] | np.ndarray) -> Records:
        """Read the examples at these indices, in this order."""
        records = self.source.read(indices)
        return records._replace(labels=np.zeros_like(records.labels))

    def labels(self) -> np.ndarray:
        """Return zeros, int32 [n]."""
        return np.zeros(len(self), np.int32)
