"""A source of examples from arrays in memory."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from flax_resnet.data.records import Records, as_bmp
from flax_resnet.errors import DataError


class ArraySource:
    """A source of images and labels from Python.

    Args:
      images: uint8 [n, H, W, 3] or [n, H, W, 1], or a sequence of such [H, W, C] of any sizes; referenced, not
        copied.
      labels: integers [n], 0 to K-1.
      class_names: K names; empty to use the numbers.

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
                f"labels of shape {list(labels.shape)} and dtype {labels.dtype}: must be integers [n]"
            )
        if not len(labels) or len(labels) != len(images):
            raise DataError(
                f"{len(images)} images and {len(labels)} labels: must be equal numbers, at least 1"
            )
        for image in images[:1] if isinstance(images, np.ndarray) else images:
            if (
                image.dtype != np.uint8
                or image.ndim != 3
                or image.shape[-1] not in (1, 3)
                or not image.size
            ):
                raise DataError(
                    f"image of shape {list(image.shape)} and dtype {image.dtype}: must be uint8 [H, W, 3] "
                    "or [H, W, 1]"
                )
        names = tuple(class_names) or tuple(map(str, range(int(labels.max()) + 1)))
        if labels.min() < 0 or labels.max() >= len(names):
            raise DataError(
                f"labels from {labels.min()} to {labels.max()}: must be between 0 and {len(names) - 1}"
            )
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

    def describe(self, index: int) -> str:
        """Return a readable name of an example."""
        return f"image {index} of the arrays"
