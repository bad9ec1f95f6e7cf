"""Names of classes that a dataset names but does not number: their form and their order."""

import unicodedata
from collections.abc import Iterable

from flax_resnet.errors import DataError


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return the different names in ascending order: by value if all are whole numbers, else as text.

    >>> in_order(["10", "9", "10"])
    ('9', '10')
    """
    different = set(names)
    if all(name.isdecimal() for name in different):
        return tuple(sorted(different, key=lambda name: (int(name), name)))
    return tuple(sorted(different))


def normal_form(name: str) -> str:
    """Return the form in which names are compared: Unicode's NFC, without blanks at both ends.

    File systems and archives store an accented letter as one character (NFC) or as a letter and an accent (NFD).
    TFDS strips the blanks when it reads a file of class names.
    """
    return (name if name.isascii() else unicodedata.normalize("NFC", name)).strip()


def same_classes(one: Iterable[str], other: Iterable[str]) -> bool:
    """Return whether two lists have the same classes in the same order, compared in `normal_form`."""
    return [*map(normal_form, one)] == [*map(normal_form, other)]


def class_name(text: str, *, key: str, where: str = "") -> str:
    """Return the name of a class, in `normal_form`, for a folder's name or a label of a table.

    Args:
      text: the folder's name or the label.
      key: the folder or the file, for an error.
      where: place in the file, such as "line 3", for an error.

    Raises:
      DataError: the name is blank, is not UTF-8, or has control characters such as a line break. It could not be
        printed, or stored in the file of class names of a TFDS dataset.
    """
    name, problem = normal_form(text), ""
    if not name:
        problem = "has a blank class name"
    elif any(unicodedata.category(letter) == "Cs" for letter in name):
        problem = f"the class name {name!a} is not UTF-8"
    elif any(unicodedata.category(letter) == "Cc" for letter in name):
        problem = f"the class name {name!a} has control characters"
    if problem:
        raise DataError(f"{where} {problem}".strip(), key=key, cure="rename the class")
    return name
