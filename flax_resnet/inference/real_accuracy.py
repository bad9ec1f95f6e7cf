"""The top-1 by ImageNet-ReaL's labels, which name every class that an image shows."""

from collections.abc import Sequence

import numpy as np

from flax_resnet.data.real_labels import labels_of_images, read_real_labels
from flax_resnet.data.records import Source
from flax_resnet.errors import ConfigError
from flax_resnet.weights import imagenet_classes, match_classes


def real_labels_of(
    source: Source, class_names: Sequence[str], file: str
) -> list[frozenset[int]] | None:
    """Return ImageNet-ReaL's labels of each image, as indices among the network's classes.

    Args:
      source: images of ImageNet's validation set, with the labels of the dataset.
      class_names: names of the network's classes.
      file: the labels, as --real_labels names them; see data/real_labels.py. Empty for None.

    Raises:
      DataError: the file is wrong, or does not belong to the images.
      ConfigError: the network lacks a class of ImageNet, or the dataset does not name its files.
    """
    if not file:
        return None
    key = "--real_labels"
    match = match_classes(imagenet_classes()[0], class_names, subset=True)
    if match.problem:
        problem = "is for networks with the 1000 classes of ImageNet"
        raise ConfigError(problem, key=key, value=file, cure="leave it out")
    of_images = labels_of_images(source, read_real_labels(file, key), key)
    return [frozenset(match.order[label] for label in labels) for labels in of_images]


def real_accuracy(
    predictions: np.ndarray | None, labels: list[frozenset[int]] | None
) -> dict[str, float]:
    """Return the top-1 by several labels per image, as a share of the readable images that have labels.

    Args:
      predictions: as in `Measured`.
      labels: the labels of each image; None to return no metrics.

    Returns:
      real_top1, and real_count: the number of images that are counted.
    """
    if labels is None or predictions is None:
        return {}
    pairs = zip(predictions.tolist(), labels, strict=True)
    right = [guess in own for guess, own in pairs if own and guess >= 0]
    return {"real_top1": sum(right) / max(len(right), 1), "real_count": len(right)}
