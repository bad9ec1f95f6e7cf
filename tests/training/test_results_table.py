"""The table of a run's records, results.csv."""

import csv
import json

import pytest

from flax_resnet.errors import WorkdirError
from flax_resnet.training.runs.folder import RunFolder
from flax_resnet.training.runs.results_table import RESULTS
from flax_resnet.training.runs.writers import record_writer

VALUES = {"loss": 1 / 3, "top1": 0.5}


def rows(folder):
    with (folder / RESULTS).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def as_numbers(row):
    """A row as the record that it was, without empty cells."""
    found = {k: v if k == "split" else float(v) for k, v in row.items() if v != ""}
    return {**found, "step": int(found["step"])}


def stored(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_table_holds_every_record_with_all_columns(tmp_path):
    writer = record_writer(RunFolder.at(tmp_path), 0)
    writer.write(1, 0.5, "train", {**VALUES, "learning_rate": 0.1})
    writer.write(2, 1.0, 'held, "out"', {**VALUES, "count": 7, "ema_top1": 0.25})
    before = (tmp_path / RESULTS).stat()
    writer.write(3, 1.5, "train", {**VALUES, "learning_rate": 0.01})
    # A record without new metrics is appended.
    assert (tmp_path / RESULTS).stat().st_ino == before.st_ino
    writer.close()
    assert [as_numbers(row) for row in rows(tmp_path)] == stored(tmp_path)
    columns = ["step", "epoch", "split", "loss", "top1", "learning_rate", "count", "ema_top1"]
    assert list(rows(tmp_path)[0]) == columns


def test_a_resumed_run_keeps_one_coherent_table(tmp_path):
    writer = record_writer(RunFolder.at(tmp_path), 0)
    for step in range(1, 6):
        writer.write(step, step / 2, "train", VALUES)
    writer.close()
    with (tmp_path / RESULTS).open("a") as file:
        file.write("6,3.0,tr")  # a process was killed while it wrote
    writer = record_writer(RunFolder.at(tmp_path), 3)
    assert [int(row["step"]) for row in rows(tmp_path)] == [1, 2, 3]
    writer.write(4, 2.0, "train", {**VALUES, "grad_norm": 2.0})
    writer.close()
    assert [as_numbers(row) for row in rows(tmp_path)] == stored(tmp_path)
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*.part"))


def test_a_table_that_cannot_be_written_is_an_error_of_the_run_folder(tmp_path):
    (tmp_path / RESULTS).mkdir()
    with pytest.raises(WorkdirError):
        record_writer(RunFolder.at(tmp_path), 0)
