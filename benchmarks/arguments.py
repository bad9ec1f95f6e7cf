"""Argument types that the benchmarks share for argparse, and a check for missing packages."""

import argparse
import importlib.util
import os
import pathlib


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
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
    path = pathlib.Path(text)
    if path.is_dir() or not _writable(path):
        raise argparse.ArgumentTypeError(f"{text}: must be a file that can be written")
    return text


def folder(text: str) -> pathlib.Path:
    """Read the path of an output folder, which need not exist, and checks that it can be written to."""
    path = pathlib.Path(text)
    if (path.exists() and not path.is_dir()) or not _writable(path):
        raise argparse.ArgumentTypeError(f"{text}: must be a folder that can be written to")
    return path


def picture(text: str) -> str:
    """Read the path of a plot: PNG, PDF or SVG."""
    if pathlib.Path(text).suffix not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"{text}: must end in .png, .pdf or .svg")
    if absent("matplotlib"):
        raise argparse.ArgumentTypeError("drawing needs matplotlib: pip install '.[plot]'")
    return output(text)


def absent(*packages: str) -> list[str]:
    """Return the names of the packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def _writable(path: pathlib.Path) -> bool:
    nearest = next((p for p in (path, *path.parents) if p.exists()), pathlib.Path())
    return os.access(nearest, os.W_OK) and (nearest == path or nearest.is_dir())
