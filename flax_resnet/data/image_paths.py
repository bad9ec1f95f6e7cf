"""The image files that texts name: files, folders, patterns, CSV files, or the lines of standard input."""

import csv
import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

from flax_resnet.data.folder_listing import list_images, report_skipped
from flax_resnet.errors import DataError, one_line

STANDARD_INPUT = "-"


def check_named(texts: Iterable[str]) -> None:
    """Raise DataError if a text is no file, no folder, and no pattern that matches anything."""
    for text in texts:
        path = os.path.expanduser(text)
        if text != STANDARD_INPUT and not os.path.exists(path) and not _matches(path):
            raise DataError(
                "is no file, folder or pattern that matches a file", key="PHOTOS", value=text
            )


def image_paths(texts: Iterable[str]) -> Iterator[str]:
    """Yield the paths of images, in the order of the texts.

    Args:
      texts: a file; a folder, whose images are listed with those of its sub-folders; a pattern such as
        ``photos/*.jpg``, in which ``**`` stands for any sub-folders; a CSV file with a column `path`, relative to
        its folder; or "-", for paths on standard input, one a line.

    Raises:
      DataError: a text names nothing, a folder has no images, or a CSV file cannot be read.
    """
    for text in texts:
        check_named([text])
        path = os.path.expanduser(text)
        if text == STANDARD_INPUT:
            yield from _lines(getattr(sys.stdin, "buffer", None) or sys.stdin)
        elif os.path.isdir(path):
            yield from _in_folder(path)
        elif os.path.isfile(path):
            yield from _in_table(path) if path.lower().endswith(".csv") else [path]
        else:
            yield from (file for file in _matches(path) if os.path.isfile(file))


def _matches(path: str) -> list[str]:
    return sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []


def _in_folder(folder: str) -> Iterator[str]:
    skipped: Counter[str] = Counter()
    parent, name = os.path.split(os.path.abspath(folder))
    found = list_images(parent, name or ".", skipped)
    report_skipped(folder, skipped)
    if not found:
        raise DataError("holds no images", key="PHOTOS", value=folder)
    inside = len(name) + 1 if name else 2  # of a path such as photos/a.jpg, or ./a.jpg below /
    return (os.path.join(folder, file[inside:]) for file in found)


def _in_table(file: str) -> Iterator[str]:
    folder = os.path.dirname(file)
    try:
        with open(file, newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
            rows = csv.DictReader(opened, skipinitialspace=True)
            if "path" not in (rows.fieldnames or ()):
                raise DataError("has no column path", key="PHOTOS", value=file)
            for row in rows:
                if not row["path"]:
                    raise DataError(f"line {rows.line_num} has no path", key=file)
                yield os.path.join(folder, row["path"])
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot be read: {one_line(error)}", key="PHOTOS", value=file) from error


def _lines(lines: Iterable[str | bytes]) -> Iterator[str]:
    return (path for line in lines if (path := os.fsdecode(line).rstrip("\r\n")))
