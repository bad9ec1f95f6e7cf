"""The labels of ImageNet-ReaL: every class that an image of ImageNet's validation set shows.

The published file real.json is a list of 50,000 lists of class indices, in the order of the images' numbers: the
first is that of ILSVRC2012_val_00000001.JPEG. An image with an empty list is not counted. A prediction is right if
it is in the list.

Source: Beyer et al. 2020, "Are we done with ImageNet?"; github.com/google-research/reassessed-imagenet.
"""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from flax_resnet.data.records import Source
from flax_resnet.errors import ConfigError, DataError, one_line

CLASSES = 1000
NUMBERED = re.compile(
    r"ILSVRC2012_val_(\d{8})(?!\d)"
)  # some copies add the WordNet id: _n01440764.JPEG


@runtime_checkable
class NamesFiles(Protocol):
    """A source that knows the name of each image's file."""

    def file_names(self) -> Sequence[str]:
        """Return the name of each example's file; empty if the dataset does not state them."""


def read_real_labels(path: str, key: str) -> list[list[int]]:
    """Read a file in the format of real.json.

    Args:
      path: the file.
      key: the flag that names it, for errors.

    Returns:
      The indices of the classes of each image, in the order of the images' numbers.

    Raises:
      DataError: the file cannot be read, or has another format.
    """
    try:
        labels = json.loads(pathlib.Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {one_line(error)}", key=key, value=path) from error
    if not isinstance(labels, list) or not labels or not all(map(_is_entry, labels)):
        allowed = f"a JSON list that has a list of classes, 0 to {CLASSES - 1}, for each image"
        raise DataError(
            "is no file of ImageNet-ReaL's labels", key=key, value=path, allowed=allowed
        )
    return labels


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and all(type(x) is int and 0 <= x < CLASSES for x in entry)


def labels_of_images(
    source: Source, labels: Sequence[Sequence[int]], key: str
) -> list[Sequence[int]]:
    """Return the labels of every example of a source, by the number in its file's name.

    Args:
      source: images of ImageNet's validation set, in any order and number.
      labels: the labels by image number, as `read_real_labels` returns them.
      key: the flag that names their file, for errors.

    Raises:
      ConfigError: the dataset does not state the names of its files.
      DataError: a name has no number of an image with labels, or two examples have the same number.
    """
    names = source.file_names() if isinstance(source, NamesFiles) else ()
    if len(names) != len(source):
        raise ConfigError(
            "needs the names of the images' files, which this dataset does not state",
            key=key,
            cure="evaluate a folder of ImageNet's validation images, or TFDS's imagenet2012",
        )
    of_images: list[Sequence[int]] = []
    seen: set[int] = set()
    for name in names:
        found = NUMBERED.search(name)
        number = int(found[1]) if found else 0
        problem = ""
        if not 1 <= number <= len(labels):
            problem = f"is none of the {len(labels):,} images of {key}, by its name"
        elif number in seen:
            problem = f"has the number of another image, {number}"
        if problem:
            raise DataError(problem, key=name, allowed="named like ILSVRC2012_val_00000001.JPEG")
        seen.add(number)
        of_images.append(labels[number - 1])
    return of_images
