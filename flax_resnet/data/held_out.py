"""The files that are held out for evaluation, if a dataset defines no splits."""

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np


def held_out(names: Sequence[str], labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return which files are held out for evaluation, bool [n].

    Each file draws a number from the hash of its name, and is held out if the number is below `share`. So a new
    file does not move other files. Then one file of a class may move: if a class would have no file for
    evaluation, the file with the smallest number is held out; if it would have no file for training, the file with
    the largest number is not. A class with a single name has its files in training.

    Args:
      names: name of each file; equal names are on the same side.
      labels: class of each file, 0 to K-1, integers [n].
      share: share of the files to hold out; 0 for none, and 1 for all, in every class.
      seed: another seed holds out other files.
    """
    if not 0 < share < 1:
        return np.full(len(names), share >= 1)
    draws = np.fromiter((_draw(name, seed) for name in names), np.uint32, len(names))
    held = draws < share * 2**32
    classes = int(labels.max(initial=-1)) + 1
    least, most = np.full(classes, 2**32 - 1, np.uint32), np.zeros(classes, np.uint32)
    np.minimum.at(least, labels, draws)
    np.maximum.at(most, labels, draws)
    # With two different draws in a class, these two are on different sides.
    held |= draws == least[labels]
    return held & (draws != most[labels])


def _draw(name: str, seed: int) -> int:
    """Return a number from 0 to 2**32 - 1 from the name of a file, in NFC as `class_order.normal_form`."""
    if not name.isascii():
        name = unicodedata.normalize("NFC", name)
    text = f"{seed}:{name}" if seed else name
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:4], "big")
