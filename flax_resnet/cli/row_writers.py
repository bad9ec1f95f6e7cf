"""Writers of rows of values, one row per image: CSV, JSON lines, or Parquet."""

import contextlib
import csv
import importlib.util
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any, Protocol

from flax_resnet.errors import ConfigError, DataError, printable, writing

Row = dict[str, Any]
BUFFERED = 4096  # rows of a row group of a Parquet file


class RowWriter(Protocol):
    """Writes rows to a file or to standard output."""

    def write(self, row: Row) -> None:
        """Write a row; all rows have the same columns, in the same order."""


class _CsvWriter:
    def __init__(self, file: IO[str], columns: Sequence[str], *, header: bool):
        self._rows = csv.DictWriter(file, columns, lineterminator="\n")
        if header:
            self._rows.writeheader()

    def write(self, row: Row) -> None:
        self._rows.writerow(row)


class _JsonWriter:
    def __init__(self, file: IO[str]):
        self._file = file

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")


class _ParquetWriter:
    def __init__(self, file: Any):
        self._file, self._rows = file, list[Row]()
        self._writer: Any = None

    def write(self, row: Row) -> None:
        self._rows.append({k: printable(v) if isinstance(v, str) else v for k, v in row.items()})
        if len(self._rows) == BUFFERED:
            self.flush()

    def flush(self) -> None:
        """Write the buffered rows as a row group."""
        import pyarrow
        import pyarrow.parquet

        if not self._rows:
            return
        schema = self._writer.schema if self._writer else None
        table = pyarrow.Table.from_pylist(self._rows, schema=schema)
        self._writer = self._writer or pyarrow.parquet.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)
        self._rows.clear()

    def close(self) -> None:
        self.flush()
        if self._writer:
            self._writer.close()


def _text_writer(file: IO[str], kind: str, columns: Sequence[str], *, header: bool) -> RowWriter:
    return _CsvWriter(file, columns, header=header) if kind == "csv" else _JsonWriter(file)


FORMATS = {"csv": (".csv",), "jsonl": (".jsonl", ".ndjson"), "parquet": (".parquet",)}


def format_of(output: str, asked: str = "") -> str:
    """Return the format of an output: the one that was asked for, or that of the suffix; CSV for standard output.

    Raises:
      ConfigError: the suffix is unknown, Parquet would go to standard output, or pyarrow is missing.
    """
    suffix = pathlib.PurePath(output).suffix.lower()
    known = {end: name for name, ends in FORMATS.items() for end in ends}
    found = asked or (known.get(suffix, "") if output else "csv")
    if not found:
        raise ConfigError(
            "does not say the format",
            key="--output",
            value=output,
            allowed=f"a file that ends in {', '.join(known)}",
            cure="or set --format",
        )
    if found == "parquet":
        if not output:
            raise ConfigError("needs a file", key="--format", value=found, cure="set --output")
        if importlib.util.find_spec("pyarrow") is None:
            raise ConfigError(
                "Parquet needs pyarrow",
                key="--output",
                value=output,
                cure="pip install 'flax_resnet[parquet]'",
            )
    return found


@contextlib.contextmanager
def row_writer(
    output: str, kind: str, columns: Sequence[str], *, append: bool = False
) -> Iterator[RowWriter]:
    """Open a writer of rows.

    Args:
      output: the file; "" for standard output.
      kind: the format; see `format_of`.
      columns: names of the columns.
      append: continue the file, whose rows `written_rows` has read.

    Raises:
      OutputError: the file cannot be written.
    """
    if not output:
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
        yield (
            _CsvWriter(sys.stdout, columns, header=True)
            if kind == "csv"
            else _JsonWriter(sys.stdout)
        )
        return
    path = pathlib.Path(output).expanduser()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "parquet":
            with path.open("wb") as file, contextlib.closing(_ParquetWriter(file)) as rows:
                yield rows
            return
        mode = "a" if append else "w"
        with path.open(mode, encoding="utf-8", errors="surrogateescape", newline="") as text:
            begun = append and text.tell() > 0
            yield (
                _CsvWriter(text, columns, header=not begun) if kind == "csv" else _JsonWriter(text)
            )


def written_rows(output: str, kind: str, columns: Sequence[str]) -> tuple[int, str]:
    """Return the number of complete rows of a file, and the path of the last one; cut an incomplete last line.

    Raises:
      ConfigError: the file is Parquet, or has other columns.
      DataError: the file cannot be read.
    """
    path = pathlib.Path(output).expanduser()
    if kind == "parquet":
        raise ConfigError(
            "cannot continue a Parquet file", key="--append", cure="use CSV or JSON lines"
        )
    if not path.exists():
        return 0, ""
    with writing(path), path.open("rb+") as raw:
        _cut_incomplete_line(raw)
    count, last = 0, ""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        try:
            rows: Any = csv.DictReader(file) if kind == "csv" else map(json.loads, file)
            for row in rows:
                count += 1
                if list(row) != list(columns):
                    raise ConfigError(
                        f"holds rows of other columns: {', '.join(map(str, row))}",
                        key="--output",
                        value=output,
                        cure="name another file, or use the same options as before",
                    )
                last = row["path"]
        except (ValueError, csv.Error, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise DataError("holds other text than rows", key="--output", value=output) from error
    return count, last


def _cut_incomplete_line(file: Any) -> None:
    """Remove what follows the last line feed of a binary file."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 2**16)
        file.seek(start)
        if (at := file.read(end - start).rfind(b"\n")) >= 0:
            file.truncate(start + at + 1)
            return
        end = start
    file.truncate(0)


def after(files: Iterator[str], count: int, last: str, output: str) -> Iterator[str]:
    """Return the files that follow those with a row: `count` rows, the last one of the file `last`.

    Unreadable files may have no row, so `last` is the first such file at its row or later.

    Raises:
      ConfigError: no file is `last`, so the output belongs to other files.
    """
    if not count:
        return files
    for _ in itertools.islice(files, count - 1):
        pass
    for file in files:
        if file == last:
            return files
    raise ConfigError(
        f"ends with {printable(last)}, which is none of the images",
        key="--output",
        value=output,
        cure="name another file, or the images of before",
    )
