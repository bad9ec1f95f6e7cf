"""List the classes of a folder and the images of each class."""

import functools
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from flax_resnet.data.class_order import class_name, in_order
from flax_resnet.errors import DataError, one_line, printable

log = logging.getLogger("flax_resnet")

# Kinds that Pillow reads without another program, in training and in prediction.
SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
    )
)
# Folders that systems and programs make, beside the hidden ones: thumbnails, resource forks and recycle bins.
SYSTEM_FOLDERS = frozenset(
    (
        *("@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "$recycle.bin"),
        *("__macosx", "__pycache__", "lost+found"),
    )
)
MOST_NAMES = 5  # names listed in a line


class ClassFolders(NamedTuple):
    """The classes of a folder.

    Attributes:
      names: one name per class, as `in_order` orders them.
      folders: the folder of each class, relative to the root.
    """

    names: tuple[str, ...]
    folders: tuple[str, ...]


def sub_folders(root: str | os.PathLike[str]) -> list[str]:
    """Return the names of the sub-folders, ascending. Hidden ones and those of the system are left out.

    Raises:
      DataError: the folder cannot be read.
    """
    return sorted(entry.name for entry in _entries(root) if _kind(entry) == "folder")


def class_folders(root: str, folder: str = "") -> ClassFolders:
    """Return the classes of a folder: one per sub-folder, named like it by `class_name`.

    Args:
      root: root of the dataset.
      folder: the folder with the classes, relative to the root; "" for the root itself.

    Raises:
      DataError: the folder cannot be read, two sub-folders have the name of one class, or a name is invalid.
    """
    here = os.path.normpath(os.path.join(root, folder))
    by_name: dict[str, str] = {}
    for own in sub_folders(here):
        name = class_name(own, key=printable(os.path.join(here, own)))
        if name in by_name:
            raise DataError(
                f"has two folders for the class {name!r}: {by_name[name]!a} and {own!a}",
                key=here,
                cure="move their images into one folder",
            )
        by_name[name] = own
    names = in_order(by_name)
    return ClassFolders(names, tuple(os.path.join(folder, by_name[name]) for name in names))


def list_classes(
    root: str, folder: str, classes: ClassFolders, *, complete: bool = False
) -> tuple[list[str], np.ndarray]:
    """List the images of classes, and log what is left out.

    Args:
      root: root of the dataset.
      folder: the folder with the classes, relative to the root.
      classes: classes from `class_folders`.
      complete: whether each class must have an image.

    Returns:
      The paths of the images, relative to the root, in the order of the classes; and their classes, int32 [n].

    Raises:
      DataError: a folder cannot be read, or a class has no image if it must have one.
    """
    files: list[str] = []
    counts: list[int] = []
    skipped: Counter[str] = Counter()
    here = os.path.normpath(os.path.join(root, folder))
    for kind in map(_kind, _entries(here)):
        if kind == "image":
            skipped["images outside of the classes"] += 1
        elif kind.endswith("/"):
            skipped[kind] += 1
    for own in classes.folders:
        before = skipped.total()
        found = list_images(root, own, skipped)
        if complete and not found:
            left_out = (
                f", and {skipped.total() - before:,} other files"
                if skipped.total() > before
                else ""
            )
            raise DataError(
                f"holds no images{left_out}",
                key=printable(os.path.join(root, own)),
                allowed=f"a folder of images ({' '.join(sorted(SUFFIXES))})",
            )
        files += found
        counts.append(len(found))
    report_skipped(here, skipped)
    return files, np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def list_images(root: str, folder: str, skipped: Counter[str]) -> list[str]:
    """Return the images in a folder and its sub-folders, as paths relative to the root, ascending.

    Links to folders are followed. A folder that is reached on several ways is read once, and a link to a folder
    above is not followed. Hidden files, and hidden folders and those of the system, are left out.

    Args:
      root: root of the dataset.
      folder: the folder, relative to the root.
      skipped: counts the files and folders that are left out, by their kind.

    Raises:
      DataError: a folder cannot be read.
    """
    images: list[str] = []
    seen = {_identity(root), *_above(root), *_above(os.path.join(root, folder))}
    # Links are followed after all other folders, so the path of an image does not depend on the file system.
    waiting, links = [folder], list[str]()
    while waiting or links:
        if not waiting:
            links.sort(reverse=True)
            waiting.append(links.pop())
        here = waiting.pop()
        path = os.path.join(root, here)
        identity = _identity(path)
        if identity in seen:
            continue
        seen.add(identity)
        for entry in _entries(path):
            kind = _kind(entry)
            if kind == "image":
                images.append(f"{here}/{entry.name}")
            elif kind == "folder":
                to = links if entry.is_symlink() else waiting
                to.append(f"{here}/{entry.name}")
            else:
                skipped[kind] += 1
    images.sort()
    return images


@functools.lru_cache(maxsize=64)
def log_once(line: str, *, level: int = logging.INFO) -> None:
    """Log a line, if it is not among the last lines: the two splits of a dataset are opened one after the other."""
    log.log(level, "%s", line)


def report_skipped(root: str | os.PathLike, skipped: Counter[str]) -> None:
    """Log the number of files and folders that were left out, and their kinds, in one line."""
    if skipped:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in skipped.most_common())
        log_once(f"{printable(root)}: {skipped.total():,} files and folders skipped ({kinds})")


def some_of(names: Sequence[str]) -> str:
    """Return the first names, for a line, and an ellipsis if there are more."""
    return ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")


def _entries(folder: str | os.PathLike[str]) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder, in any order. Raise DataError if it cannot be read."""
    try:
        with os.scandir(os.fspath(folder)) as entries:
            yield from entries
    except OSError as error:
        raise DataError(f"cannot be read: {one_line(error)}", key=printable(folder)) from error


def _kind(entry: os.DirEntry[str]) -> str:
    """Return "image", "folder", or the kind of an entry to leave out, for the log."""
    name = entry.name
    try:
        if entry.is_dir():
            return f"{printable(name)}/" if _is_foreign(name) else "folder"
        if name.startswith("."):
            return "hidden files"
        suffix = os.path.splitext(name)[1].lower()
        if suffix not in SUFFIXES:
            return printable(suffix) or "without a suffix"
        return "image" if entry.is_file() else "broken links"
    except OSError:  # a link to itself
        return "broken links"


def _is_foreign(folder: str) -> bool:
    """Return whether a folder is hidden or made by a system or program, so its images belong to no class."""
    return folder.startswith(".") or folder.lower() in SYSTEM_FOLDERS


def _identity(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise DataError(f"cannot be read: {one_line(error)}", key=printable(folder)) from error
    return status.st_dev, status.st_ino


def _above(folder: str) -> Iterator[tuple[int, int]]:
    """Yield the identity of every folder above a folder."""
    path = os.path.realpath(folder)
    while (parent := os.path.dirname(path)) != path:
        path = parent
        yield _identity(path)
