"""Read a CSV file of images: the columns path and label, and optionally split."""

import csv
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from flax_resnet.data.class_order import class_name
from flax_resnet.errors import DataError, one_line, printable

COLUMNS = ("path", "label", "split")


class TableRow(NamedTuple):
    """One image of a table.

    Attributes:
      line: number of its first line in the file, from 1.
      path: path of the image, relative to the folder of the file.
      label: name of its class, as `class_name` returns it.
      split: name of its split; "" if there is none.
    """

    line: int
    path: str
    label: str
    split: str


class ImageTable(NamedTuple):
    """The images of a CSV file.

    Attributes:
      rows: the images, in the order of the file.
      has_splits: whether any image has a split.
    """

    rows: list[TableRow]
    has_splits: bool


def read_table(file: pathlib.Path, *, key: str) -> ImageTable:
    """Read a CSV file in UTF-8. Blank lines, and blanks around the values, have no meaning.

    Args:
      file: the file.
      key: the setting that names it, for an error about the whole file.

    Raises:
      DataError: the file cannot be read or is no table; or a line is not UTF-8, has no path or label, or gives an
        image another label than a line before. The error names the line.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
            lines = csv.reader(_checked(opened, file), skipinitialspace=True, strict=True)
            return _table(lines, file, key)
    except OSError as error:
        problem = f"cannot be read: {one_line(error)}"
        raise DataError(problem, key=key, value=str(file)) from error


def _table(lines: Any, file: pathlib.Path, key: str) -> ImageTable:
    records = _records(lines, file)
    _, header = next(records, (1, []))
    columns = [name.strip() for name in header]
    if missing := {"path", "label"} - set(columns):
        raise DataError(
            f"has no column {' or '.join(sorted(missing))}",
            key=key,
            value=str(file),
            cure="name the columns path and label in its first line, with commas between (split is optional)",
        )
    at = {name: columns.index(name) for name in COLUMNS if name in columns}
    if twice := [name for name in at if columns.count(name) > 1]:
        raise DataError(f"has several columns {twice[0]}", key=key, value=str(file))
    rows: list[TableRow] = []
    folder = file.parent
    first: dict[str, TableRow] = {}
    # One object per different text, because a large table repeats its labels and splits. A split is spelled as in
    # its first line.
    texts: dict[str, str] = {}
    splits: dict[str, str] = {}
    spelled: dict[str, str] = {}
    # Each record gets an empty value at its end, for a column that is absent.
    places = [at.get(name, len(columns)) for name in COLUMNS]
    for number, values in records:
        if len(values) > len(columns) and "".join(values[len(columns) :]).strip():
            raise DataError(
                f"line {number} has {len(values)} values for {len(columns)} columns",
                key=file,
                cure="quote a value that has a comma",
            )
        values += [""] * (len(columns) + 1 - len(values))
        path, label, split = (values[place] for place in places)
        if not path.strip() or not label.strip():
            named = {"path": path, "label": label}.items()
            lacking = " and no ".join(name for name, value in named if not value.strip())
            raise DataError(f"line {number} has no {lacking}", key=file)
        if label not in texts:
            texts[label] = class_name(label, key=str(file), where=f"line {number}")
        if split not in splits:
            splits[split] = spelled.setdefault(split.strip().casefold(), split.strip())
        row = TableRow(number, _path(path, folder), texts[label], splits[split])
        if (same := first.setdefault(row.path, row)).label != row.label:
            raise DataError(
                f"line {number} gives {printable(row.path)} the label {row.label!r}, and line {same.line} "
                f"the label {same.label!r}",
                key=file,
                cure="remove one of the lines",
            )
        rows.append(row)
    return ImageTable(rows, any(row.split for row in rows))


def _checked(lines: Iterable[str], file: pathlib.Path) -> Iterator[str]:
    """Yield the lines of a file. Raise DataError for bytes that no text has."""
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise DataError(
                f"line {number} has a zero byte", key=file, cure="save it as UTF-8 text"
            )
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError as error:
                cure = "save it as UTF-8, and rename files whose names are not UTF-8"
                raise DataError(f"line {number} is not UTF-8", key=file, cure=cure) from error
        yield line


def _records(lines: Any, file: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the first line and the values of each record that is not blank."""
    while True:
        number = lines.line_num + 1
        try:
            values = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"line {number} is not CSV: {one_line(error)}",
                key=file,
                cure="look for a quotation mark without its partner",
            ) from error
        if "".join(values).strip():
            yield number, values


def _path(text: str, folder: pathlib.Path) -> str:
    """Return a path in its shortest form, without the blanks around it unless the file's name has them."""
    bare = text.strip()
    if bare != text and os.path.exists(folder / text):
        bare = text
    # Most paths are short already, and normpath takes 2 us.
    return os.path.normpath(bare) if "//" in bare or "./" in bare else bare
