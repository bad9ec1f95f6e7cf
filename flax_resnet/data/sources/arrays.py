"""A source of examples from arrays in memory."""

from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from PIL import Image

from flax_resnet.data.data_section import Data, SourceRow
from flax_resnet.data.fingerprint import Fingerprint, array_checksum
from flax_resnet.data.records import Records, as_bmp
from flax_resnet.errors import DataError


class ArraySource:
    """A source of images and labels from Python.

    Args:
      images: uint8 [n, H, W, 3] or [n, H, W, 1], or a sequence of uint8 arrays [H, W, 3] or [H, W, 1] of any sizes.
        They are not copied.
      labels: integers [n], 0 to K-1.
      class_names: K names; empty to use the numbers as names.

    Raises:
      DataError: a shape or dtype is wrong, there are no examples, or the labels do not match images or names.
    """

    orientations = False

    def __init__(
        self,
        images: np.ndarray | Sequence[np.ndarray],
        labels: np.ndarray | Sequence[int],
        class_names: Sequence[str] = (),
    ):
        if not isinstance(images, np.ndarray):
            images = [np.asarray(image) for image in images]
        labels = np.asarray(labels)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise DataError(
                f"have shape {list(labels.shape)} and dtype {labels.dtype}",
                key="labels",
                allowed="integers [n]",
            )
        if not len(labels) or len(labels) != len(images):
            raise DataError(
                f"there are {len(labels)} for {len(images)} images",
                key="labels",
                allowed="one per image, and at least 1",
            )
        for number, image in enumerate(images[:1] if isinstance(images, np.ndarray) else images):
            if (
                image.dtype != np.uint8
                or image.ndim != 3
                or image.shape[-1] not in (1, 3)
                or not image.size
            ):
                raise DataError(
                    f"image {number} has shape {list(image.shape)} and dtype {image.dtype}",
                    key="images",
                    allowed="uint8 [H, W, 3] or [H, W, 1]",
                )
        names = tuple(class_names)
        largest = len(names) - 1 if names else int(labels.max())
        if labels.min() < 0 or labels.max() > largest:
            raise DataError(
                f"are from {labels.min()} to {labels.max()}",
                key="labels",
                allowed=f"between 0 and {largest}" if names else "at least 0",
            )
        names = names or tuple(map(str, range(largest + 1)))
        self._images, self._labels, self.class_names = images, labels.astype(np.int32), names

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, indices: Sequence[int] | np.ndarray) -> Records:
        """Read the examples at these indices, encoded as BMP, which is a header followed by the pixels."""
        chosen = [self._images[int(i)] for i in indices]
        pixels = [np.ascontiguousarray(np.broadcast_to(c, (*c.shape[:2], 3))) for c in chosen]
        labels = self._labels[np.asarray(indices, np.int64)]
        return Records([as_bmp(Image.fromarray(image)) for image in pixels], labels)

    def labels(self) -> np.ndarray:
        """Return the label of every example, int32 [n]."""
        return self._labels

    def fingerprint(self) -> Fingerprint:
        """Return the fingerprint of all labels and of the pixels of at most 1,000 images, evenly spaced."""
        some = np.linspace(0, len(self) - 1, min(len(self), 1000)).astype(np.int64)
        pixels = np.array([array_checksum(self._images[index]) for index in some])
        return {"labels": array_checksum(self._labels), "pixels": array_checksum(pixels)}

    def describe(self, index: int) -> str:
        """Return a readable name of an example."""
        return f"image {index} of the arrays"


def _cannot_open(config: Data, split: str, train: bool) -> NoReturn:
    del config, split, train
    raise DataError(key="data.source", value="python", cure="pass the sources to train() in Python")


ROWS = (SourceRow(name="python", help="sources passed from Python", open=_cannot_open),)
