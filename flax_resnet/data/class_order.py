"""The order of classes that a dataset names but does not number."""

from collections.abc import Iterable


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return the different names in ascending order: by value if all are whole numbers, else as text.

    >>> in_order(["10", "9", "10"])
    ('9', '10')
    """
    different = set(names)
    if all(name.isdecimal() for name in different):
        return tuple(sorted(different, key=lambda name: (int(name), name)))
    return tuple(sorted(different))
