"""The table results.csv: the records of a run with one column per metric, for people who plot elsewhere."""

import csv
import io
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

RESULTS = "results.csv"


class ResultsTable:
    """Writes records to a table. A record with new metrics rewrites it with more columns.

    Args:
      folder: the run folder.
      records: the records so far; the table is rewritten from them.

    Raises:
      OSError: the table cannot be written.
    """

    def __init__(self, folder: pathlib.Path, records: Sequence[dict[str, Any]]) -> None:
        self._path = folder / RESULTS
        self._columns: list[str] = []
        self._rewrite(records)

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Write the last of all records. Raises OSError."""
        if records[-1].keys() <= set(self._columns):
            with self._path.open("a", encoding="utf-8", newline="") as file:
                file.write(_lines(self._columns, records[-1:]))
        else:
            self._rewrite(records)

    def _rewrite(self, records: Sequence[dict[str, Any]]) -> None:
        self._columns = list(dict.fromkeys(key for record in records for key in record))
        unfinished = self._path.with_name(f".{RESULTS}.part")
        header = ",".join(self._columns) + "\n" if records else ""
        try:
            unfinished.write_text(
                header + _lines(self._columns, records), encoding="utf-8", newline=""
            )
            os.replace(unfinished, self._path)
        finally:
            unfinished.unlink(missing_ok=True)


def _lines(columns: Sequence[str], records: Iterable[dict[str, Any]]) -> str:
    """Return a line per record; a metric that a record lacks is an empty cell."""
    buffer = io.StringIO(newline="")
    csv.DictWriter(buffer, columns, lineterminator="\n").writerows(records)
    return buffer.getvalue()
