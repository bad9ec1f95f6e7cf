"""Kinds of command-line arguments that benchmarks share."""

import argparse
import os
import pathlib


def count(text: str) -> int:
    """Reads a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
    return int(text)


def duration(text: str) -> float:
    """Reads seconds, more than 0 and at most an hour."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: must be seconds, above 0 and at most 3600")
    return seconds


def output(text: str) -> str:
    """Reads the name of a file to be written, before hours are spent on what it shall hold."""
    path = pathlib.Path(text)
    nearest = next((p for p in path.parents if p.exists()), pathlib.Path())
    if (
        path.is_dir()
        or not nearest.is_dir()
        or not os.access(path if path.exists() else nearest, os.W_OK)
    ):
        raise argparse.ArgumentTypeError(f"{text}: must be a file that can be written")
    return text
