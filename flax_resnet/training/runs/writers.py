"""Writers of records: metrics.jsonl (the source of truth), results.csv, TensorBoard, and the terminal."""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
from clu import metric_writers
from tqdm import tqdm

from flax_resnet.errors import WorkdirError, one_line
from flax_resnet.optim.evaluation_metrics import EMA, shown
from flax_resnet.training.processes.exchange import check_same, in_turns
from flax_resnet.training.runs.folder import METRICS, RunFolder
from flax_resnet.training.runs.results_table import ResultsTable
from flax_resnet.training.runs.time_account import clock

log = logging.getLogger("flax_resnet")


class Records:
    """The records of a run in memory, as each of its processes has them.

    Args:
      records: the records up to the start.

    Attributes:
      records: all records: step, epoch, split, and the values.
    """

    def __init__(self, records: list[dict[str, Any]]):
        self.records = records

    def write(self, step: int, epoch: float, split: str, values: dict[str, float]) -> None:
        """Add a record."""
        self.records.append({"step": step, "epoch": round(epoch, 4), "split": split, **values})

    def close(self) -> None:
        """Do nothing: there is no file."""


class RecordWriter(Records):
    """Appends records to metrics.jsonl, results.csv and TensorBoard, in process 0.

    results.csv and the TensorBoard files are rewritten from the records up to the start, because TensorBoard's
    marker of a restart (SessionLog.START) does not hide the events that TensorFlow 2 writes.

    Args:
      folder: the run folder.
      records: the records up to the start, which metrics.jsonl holds.
    """

    def __init__(self, folder: RunFolder, records: list[dict[str, Any]]):
        super().__init__(records)
        self._folder = folder
        with self._writing():
            self._file = (folder.path / METRICS).open("a", buffering=1)  # write line by line
            self._table = ResultsTable(folder.path, self.records)
            for events in folder.path.glob("events.out.tfevents.*"):
                events.unlink()
            self._tensorboard = metric_writers.SummaryWriter(str(folder))
            for record in self.records:
                self._show(record)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Convert errors of writing inside this block to a WorkdirError."""
        try:
            yield
        except Exception as error:
            # TensorFlow writes the event files and raises its own errors. Their messages begin with {{FUNCTION}}.
            if not (isinstance(error, OSError) or type(error).__module__.startswith("tensorflow")):
                raise
            reason = one_line(error).rpartition("}} ")[2]
            raise WorkdirError(f"cannot be written: {reason}", key=self._folder.path) from error

    def _show(self, record: dict) -> None:
        values = {k: v for k, v in record.items() if k not in ("step", "epoch", "split")}
        scalars = {f"{record['split']}/{k}": v for k, v in values.items()}
        self._tensorboard.write_scalars(record["step"], scalars)

    def write(self, step: int, epoch: float, split: str, values: dict[str, float]) -> None:
        """Write one record: step, epoch, split, and the values. Raises WorkdirError."""
        super().write(step, epoch, split, values)
        with self._writing():
            self._file.write(json.dumps(self.records[-1]) + "\n")
            self._table.add(self.records)
            self._show(self.records[-1])

    def close(self) -> None:
        """Flush buffered records, and close the file. Raises WorkdirError."""
        with self._writing():
            try:
                self._tensorboard.flush()
            finally:
                self._file.close()


def record_writer(folder: RunFolder, start_step: int) -> Records:
    """Return the writer of the records; those after the step from which training resumes are removed.

    With several processes, process 0 writes.

    Raises:
      WorkdirError: the records cannot be read or written.
    """
    # The others read what process 0 has left.
    records = in_turns(
        lambda: folder.read_records() if jax.process_index() else folder.cut_records(start_step)
    )
    check_same(f"the number of records in {folder}", len(records))
    return Records(records) if jax.process_index() else RecordWriter(folder, records)


class Progress:
    """A tqdm bar if stderr is a terminal, else plain log lines; in process 0 only.

    Args:
      total: steps of the run.
      start: the step from which training resumes.
      monitor: the metric to show besides loss and top-1.
    """

    def __init__(self, total: int, start: int, monitor: str):
        self._monitor = monitor
        self._total, self._start, self._began = total, start, time.perf_counter()
        self._bar = None
        if sys.stderr.isatty() and jax.process_index() == 0:
            layout = "{percentage:3.0f}%|{bar}| {n}/{total} steps [{elapsed}<{remaining}{postfix}]"
            self._bar = tqdm(total=total, initial=start, bar_format=layout, dynamic_ncols=True)

    def advance(self, values: dict[str, float]) -> None:
        """Advance the bar by a step, and show the step's metrics."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._shown(values), refresh=False)
            self._bar.update()

    def record(self, step: int, split: str, values: dict[str, float]) -> None:
        """Log a record: evaluations always, training records only without a bar."""
        if self._bar is not None and split == "train":
            return
        left = ""
        if split == "train" and step > self._start:
            spent = time.perf_counter() - self._began
            left = f", {clock(spent / (step - self._start) * (self._total - step))} left"
        log.info("step %d of %d, %s: %s%s", step, self._total, split, self._shown(values), left)

    def _shown(self, values: dict[str, float]) -> str:
        """Format loss, top-1 and the monitored metric; of the moving average, without the loss; and the speed."""
        parts = [shown(values, only=("loss", "top1", self._monitor))]
        if averaged := shown(values, EMA, only=("top1", self._monitor)):
            parts.append(f"averaged {averaged}")
        if share := values.get("skipped"):
            parts.append(f"{share:.0%} of the steps skipped")
        if "images_per_second" in values:
            parts.append(f"{values['images_per_second']:.0f} images/s")
        return ", ".join(parts)

    def close(self) -> None:
        """Close the bar; it stays on the terminal."""
        if self._bar is not None:
            self._bar.close()
