"""Continue an interrupted output of rows: which rows it holds, and which images follow.

The first column names the object of a row: the path of an image, or a model.
"""

import csv
import io
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flax_resnet.errors import ConfigError, DataError, OutputError, one_line, printable


class Written(NamedTuple):
    """The complete rows of a file.

    Attributes:
      rows: their number.
      last: the first column of the last one; "" without rows.
      size: bytes up to their end; what follows is an incomplete row.
    """

    rows: int = 0
    last: str = ""
    size: int = 0


def written_rows(
    output: str,
    kind: str,
    columns: Sequence[str],
    note: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> Written:
    """Return what an output holds already. Nothing is changed.

    Args:
      output: the file.
      kind: its format; see `row_writers`.
      columns: names of the columns.
      note: called with each complete row; a CSV file has only texts.

    Raises:
      ConfigError: the file is Parquet, or has other columns.
      DataError: the file holds something else than rows.
      OutputError: the file cannot be read.
    """
    path = pathlib.Path(output).expanduser()
    if kind == "parquet":
        raise ConfigError(
            "cannot continue a Parquet file", key="--append", cure="use CSV or JSON lines"
        )
    try:
        with path.open("rb") as file:
            size = _complete_size(file)
            file.seek(0)
            lines = _lines(file, size)
            header = ",".join(columns) if kind == "csv" else f'{{"{columns[0]}": '
            if not size and not f"{header}\n".encode().startswith(file.read(len(header))):
                raise DataError("holds no rows", key="--output", value=output)
            return _counted(lines, kind, columns, output, note)._replace(size=size)
    except FileNotFoundError:
        return Written()
    except OSError as error:
        raise OutputError(f"cannot be read: {one_line(error)}", key=path) from error


def _counted(
    lines: Iterator[str],
    kind: str,
    columns: Sequence[str],
    output: str,
    note: Callable[[Mapping[str, Any]], None],
) -> Written:
    rows: Any = map(json.loads, lines)
    count, last = 0, ""
    try:
        if kind == "csv":
            reader = csv.DictReader(lines)
            _check_columns(reader.fieldnames or columns, columns, output)
            rows = reader
        for row in rows:
            if not isinstance(row, dict):
                raise ValueError("not an object")
            _check_columns(row, columns, output)
            note(row)
            count, last = count + 1, row[columns[0]]
    except ConfigError:
        raise
    except (ValueError, csv.Error) as error:
        raise DataError("holds other text than rows", key="--output", value=output) from error
    return Written(count, last)


def _check_columns(found: Any, columns: Sequence[str], output: str) -> None:
    if list(found) != list(columns):
        raise ConfigError(
            f"holds rows of other columns: {', '.join(map(str, found))}",
            key="--output",
            value=output,
            cure="name another file, or use the same options as before",
        )


def _complete_size(file: io.BufferedReader) -> int:
    """Return the number of bytes up to the last line feed."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 2**16)
        file.seek(start)
        if (at := file.read(end - start).rfind(b"\n")) >= 0:
            return start + at + 1
        end = start
    return 0


def _lines(file: io.BufferedReader, size: int) -> Iterator[str]:
    """Yield the lines in the first `size` bytes."""
    while size > 0 and (line := file.readline()):
        size -= len(line)
        yield line.decode(errors="surrogateescape")


def after(files: Iterator[str], written: Written, output: str) -> Iterator[str]:
    """Return the files that follow those with a row.

    Unreadable files may have no row, so the last row's file is looked for at its row or later.

    Raises:
      ConfigError: no file is that of the last row, so the output belongs to other files.
    """
    if not written.rows:
        return files
    for _ in itertools.islice(files, written.rows - 1):
        pass
    for file in files:
        if file == written.last:
            return files
    raise ConfigError(
        f"ends with {printable(written.last)}, which is none of the images",
        key="--output",
        value=output,
        cure="name another file, or the images of before",
    )
