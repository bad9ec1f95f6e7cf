"""What a network predicts for images."""

from typing import NamedTuple

import numpy as np


class Unreadable(NamedTuple):
    """An image that `Classifier.predict` skipped.

    Attributes:
      position: position among the images.
      name: the file, or "image 3" for an image without a file.
      problem: why it cannot be read, in one line.
    """

    position: int
    name: str
    problem: str


class Prediction(NamedTuple):
    """The predictions of a network for N images.

    Attributes:
      labels: int32 [N], the most probable class; -1 for an unreadable image.
      probabilities: float32 [N, K]; each row sums to 1. NaN for an unreadable image.
      unreadable: the unreadable images, if they were skipped.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    unreadable: tuple[Unreadable, ...] = ()
