"""How Orbax is made to behave: which checkpoints it keeps, what it logs, and how its errors read."""

import contextlib
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from flax_resnet.errors import one_line


class Kept:
    """Orbax's policy of preservation: the last two checkpoints, and the one at the step `best`."""

    best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return for each checkpoint, oldest first, whether it is kept."""
        del context
        last = {checkpoint.step for checkpoint in checkpoints[-2:]}
        return [checkpoint.step in last | {self.best} for checkpoint in checkpoints]


@contextlib.contextmanager
def without_remarks() -> Iterator[None]:
    """Hide Orbax's warnings inside this block, such as that a folder opened for reading is only read."""
    absl = logging.getLogger("absl")

    def is_kept(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or "orbax" not in record.pathname

    absl.addFilter(is_kept)
    try:
        yield
    finally:
        absl.removeFilter(is_kept)


def reason(error: BaseException) -> str:
    """Return the message of an error as one line; for an error of TensorStore, only the innermost cause.

    >>> reason(ValueError("RESOURCE_EXHAUSTED: Error writing 'a': No space left on device [os_error_code='28']"))
    'No space left on device'
    """
    text, *metadata = re.split(r" \[(?:tensorstore_spec|os_error_code)", str(error), maxsplit=1)
    return text.rpartition(": ")[2] if metadata else one_line(error)


def identity(folder: pathlib.Path) -> tuple[int, int] | None:
    """Return what tells a folder from another one at its place; None if there is none. Orbax makes it anew."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino
