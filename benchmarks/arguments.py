"""Argument types that the benchmarks share for argparse, and a check for missing packages."""

import argparse
import importlib.util
import os
import pathlib
import tempfile

MOST_BYTES, MOST_BYTES_OF_A_NAME = 4000, 255  # of a path, on Linux


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
    return int(text)


def batch_size(text: str) -> int:
    """Read a number of images, 1 to 65,536, as `train.batch_size` has it."""
    if not text.isdecimal() or not 1 <= int(text) <= 65_536:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1 to 65,536")
    return int(text)


def duration(text: str) -> float:
    """Read seconds, more than 0 and at most an hour."""
    return _positive(text, 3600, "seconds, above 0 and at most 3600")


def seed(text: str) -> int:
    """Read a seed, 0 to 2**31 - 1."""
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 0 to 2**31 - 1")
    return int(text)


def share(text: str) -> float:
    """Read a share, above 0 and at most 1."""
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
    """Read the path of an output file, and checks that it can be written before a long measurement starts."""
    path = _path(text, words := "a file that can be written")
    if path.is_dir() or not _writable(path):
        raise argparse.ArgumentTypeError(f"{text}: must be {words}")
    return str(path)


def folder(text: str) -> pathlib.Path:
    """Read the path of an output folder, which need not exist, and checks that it can be written to."""
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
    """Read the path of a file or folder that a command opens only if it needs it."""
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
    """Return a path, whose ~ is expanded; raise ArgumentTypeError if the system can have no such path."""
    path = pathlib.Path(os.path.expanduser(text))
    is_no_user = str(path).startswith("~")
    is_long = len(os.fsencode(path)) > MOST_BYTES or any(
        len(os.fsencode(part)) > MOST_BYTES_OF_A_NAME for part in path.parts
    )
    if not text or is_no_user or is_long:
        raise argparse.ArgumentTypeError(f"{text}: must be {words}")
    return path


def _writable(path: pathlib.Path) -> bool:
    """Whether a file or folder can be written, or be made with the folders that it needs."""
    nearest = next((p for p in (path, *path.parents) if p.exists()), pathlib.Path())
    if not os.access(nearest, os.W_OK) or (nearest != path and not nearest.is_dir()):
        return False
    try:
        if (
            nearest.is_dir()
        ):  # root may write anywhere, and yet not to /proc or a disk that is read-only
            tempfile.TemporaryFile(dir=nearest).close()
    except OSError:
        return False
    return True
