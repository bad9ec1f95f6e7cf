"""Argument types that the benchmarks share for argparse, and a check for missing packages."""

import argparse
import importlib.util
import os
import pathlib
import tempfile

# Longest path and longest file name, in bytes. Linux allows 4,095 and 255.
MOST_BYTES, MOST_BYTES_OF_A_NAME = 4000, 255


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
    return int(text)


def batch_size(text: str) -> int:
    """Read a batch size, 1 to 65,536 images."""
    if not text.isdecimal() or not 1 <= int(text) <= 65_536:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1 to 65,536")
    return int(text)


def duration(text: str) -> float:
    """Read a time in seconds, above 0 and at most 3600."""
    return _positive(text, 3600, "seconds, above 0 and at most 3600")


def minutes(text: str) -> float:
    """Read a time in minutes, above 0 and at most 1440."""
    return _positive(text, 1440, "minutes, above 0 and at most 1440")


def seed(text: str) -> int:
    """Read a seed, 0 to 2**31 - 1."""
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 0 to 2**31 - 1")
    return int(text)


def share(text: str) -> float:
    """Read a fraction, above 0 and at most 1."""
    return _positive(text, 1, "a number above 0 and at most 1")


def _positive(text: str, most: float, words: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= most:
        raise argparse.ArgumentTypeError(f"{text}: must be {words}")
    return number


def output(text: str) -> str:
    """Read the path of an output file; check that it can be written, before a long measurement starts."""
    path = _path(text, words := "a file that can be written")
    if path.is_dir() or not _writable(path):
        raise argparse.ArgumentTypeError(f"{text}: must be {words}")
    return str(path)


def folder(text: str) -> pathlib.Path:
    """Read the path of an output folder, which need not exist; check that it can be written to."""
    path = _path(text, words := "a folder that can be written to")
    if (path.exists() and not path.is_dir()) or not _writable(path):
        raise argparse.ArgumentTypeError(f"{text}: must be {words}")
    return path


def existing(text: str) -> pathlib.Path:
    """Read the path of a file or folder that exists."""
    path = _path(text, words := "a file or folder that exists")
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text}: must be {words}")
    return path


def place(text: str) -> str:
    """Read the path of a file or folder, without checking that it exists."""
    return str(_path(text, "a file or folder"))


def picture(text: str) -> str:
    """Read the path of a plot: PNG, PDF or SVG."""
    if pathlib.Path(text).suffix not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"{text}: must be a file that ends in .png, .pdf or .svg")
    if absent("matplotlib"):
        raise argparse.ArgumentTypeError("drawing needs matplotlib: pip install '.[plot]'")
    return output(text)


def absent(*packages: str) -> list[str]:
    """Return the names of the packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def _path(text: str, words: str) -> pathlib.Path:
    """Expand ~ in a path. Raise ArgumentTypeError if the path is empty or too long, or its user is unknown."""
    path = pathlib.Path(os.path.expanduser(text))
    is_no_user = str(path).startswith("~")
    is_long = len(os.fsencode(path)) > MOST_BYTES or any(
        len(os.fsencode(part)) > MOST_BYTES_OF_A_NAME for part in path.parts
    )
    if not text or is_no_user or is_long:
        raise argparse.ArgumentTypeError(f"{text}: must be {words}")
    return path


def _writable(path: pathlib.Path) -> bool:
    """Return whether a file or folder can be written, or created together with its missing parents."""
    nearest = next((p for p in (path, *path.parents) if p.exists()), pathlib.Path())
    if not os.access(nearest, os.W_OK) or (nearest != path and not nearest.is_dir()):
        return False
    try:
        # For root, os.access allows every path, even in /proc or on a read-only disk: create a file to check.
        if nearest.is_dir():
            tempfile.TemporaryFile(dir=nearest).close()
    except OSError:
        return False
    return True
