"""What every source of examples gives: a length, and encoded images and labels by index."""

import io
from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

import numpy as np
from PIL import Image


class Records(NamedTuple):
    """Some examples.

    Attributes:
      images: as stored: JPEG, PNG, BMP, WebP or GIF.
      labels: int32 [n].
      orientations: int32 [n], EXIF's numbers from 1 to 8, 0 where none is said; None where no image is to
        be turned.
    """

    images: list[bytes]
    labels: np.ndarray
    orientations: np.ndarray | None = None


class Source(Protocol):
    """A dataset split that is read at random.

    Attributes:
      class_names: one name per class.
      orientations: whether its records say how images are to be turned upright.
    """

    class_names: tuple[str, ...]
    orientations: bool

    def __len__(self) -> int:
        """Returns the number of examples."""

    def read(self, indices: Sequence[int]) -> Records:
        """Reads the examples at these indices, in this order."""

    def labels(self) -> np.ndarray:
        """Returns the label of every example, int32 [n]."""

    def describe(self, index: int) -> str:
        """Names an example for a person: a file, or a place in a split."""


class StoredSource(Source, Protocol):
    """A split of a dataset that lies on disk."""

    def shared(self, other: Self) -> int:
        """Returns how many examples are those of another split of the dataset, too."""


def as_bmp(image: Image.Image) -> bytes:
    """Encodes an image of mode RGB as BMP, which is its pixels behind a header."""
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    return buffer.getvalue()
