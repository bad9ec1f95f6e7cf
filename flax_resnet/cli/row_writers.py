"""Writers of rows of values, one row per image or model: CSV, JSON lines, or Parquet; and of arrays."""

import contextlib
import csv
import importlib.util
import io
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any, Protocol

import numpy as np

from flax_resnet.errors import ConfigError, printable, writing

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
    def __init__(self, file: Any, columns: Sequence[str]):
        import pyarrow
        import pyarrow.parquet

        self._schema = pyarrow.schema([(name, _type(name)) for name in columns])
        self._table = pyarrow.Table.from_pylist
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)
        self._rows: list[Row] = []

    def write(self, row: Row) -> None:
        self._rows.append({k: printable(v) if isinstance(v, str) else v for k, v in row.items()})
        if len(self._rows) == BUFFERED:
            self._write_group()

    def _write_group(self) -> None:
        self._writer.write_table(self._table(self._rows, schema=self._schema))
        self._rows.clear()

    def close(self) -> None:
        if self._rows:
            self._write_group()
        self._writer.close()


def _type(column: str) -> Any:
    """Return the type of a column: the path and labels are text, probabilities are numbers, features are lists."""
    import pyarrow

    if column.startswith(("path", "label")):
        return pyarrow.string()
    return (
        pyarrow.float64() if column.startswith("probability") else pyarrow.list_(pyarrow.float32())
    )


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
    output: str, kind: str, columns: Sequence[str], *, keep: int = 0, at_once: bool = False
) -> Iterator[RowWriter]:
    """Open a writer of rows.

    Args:
      output: the file; "" for standard output.
      kind: the format; see `format_of`.
      columns: names of the columns.
      keep: continue the file after this number of bytes; see `continued_output`.
      at_once: write each row to the file when it is made, because rows take long.

    Raises:
      OutputError: the file cannot be written.
    """
    if not output:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(
                encoding="utf-8", errors="surrogateescape", line_buffering=at_once or None
            )
        yield _text_writer(sys.stdout, kind, columns, header=True)
        return
    path = pathlib.Path(output).expanduser()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "parquet":
            with path.open("wb") as file, contextlib.closing(_ParquetWriter(file, columns)) as rows:
                yield rows
            return
        mode = "r+" if keep else "w"
        buffering = 1 if at_once else -1  # 1: by line
        with path.open(
            mode, buffering, encoding="utf-8", errors="surrogateescape", newline=""
        ) as text:
            text.truncate(keep)
            text.seek(0, os.SEEK_END)
            yield _text_writer(text, kind, columns, header=not keep)


def _text_writer(file: IO[str], kind: str, columns: Sequence[str], *, header: bool) -> RowWriter:
    return _CsvWriter(file, columns, header=header) if kind == "csv" else _JsonWriter(file)


class ArrayWriter:
    """Writes arrays of one shape below each other into an .npy file, whose header is completed at the end."""

    def __init__(self, file: Any):
        self._file, self._count = file, 0
        self._shape: tuple[int, ...] | None = None

    def write(self, array: np.ndarray) -> None:
        """Write an array."""
        array = np.asarray(array, np.float32)
        if self._shape is None:
            self._shape = array.shape
            self._write_header()
        self._file.write(array.tobytes())
        self._count += 1

    def close(self) -> None:
        """Complete the header; numpy leaves room in it for a larger number of rows."""
        self._shape = self._shape or (0,)
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        shape = (self._count, *(self._shape or ()))
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


@contextlib.contextmanager
def array_writer(output: str) -> Iterator[ArrayWriter]:
    """Open a writer of arrays, float32 [n, ...] in an .npy file. Raises OutputError if it cannot be opened."""
    path = pathlib.Path(output).expanduser()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    with file, contextlib.closing(ArrayWriter(file)) as writer:
        yield writer
