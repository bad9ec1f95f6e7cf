"""The record of a stage: a JSON file, rewritten after every item. A killed stage loses at most one item."""

import dataclasses
import json
import os
import pathlib
import statistics
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flax_resnet.errors import ConfigError, one_line, writing

# States of a stage. NOT_RUN: the stage has not started yet, or no time was left for it. SKIPPED: a package is
# missing. STOPPED: the process ended while the stage ran; its record still says RUNNING, and reports show STOPPED.
# An incomplete stage runs again, and keeps the items that it has already measured. A start is one run of a stage.
NOT_RUN, RUNNING, STOPPED, DONE = "not run", "running", "stopped", "done"
TIMED_OUT, FAILED, SKIPPED = "timed out", "failed", "skipped"
# The exceptions that may occur when a file that is not a record is read as one.
NOT_A_RECORD = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A quantity that was measured several times.

    Attributes:
      name: the quantity; the same name in two records means the same quantity.
      values: one value per round, in `unit`.
      unit: a unit such as "images/s" or "ms".
      larger_is_better: whether a larger value is an improvement.
    """

    name: str
    values: tuple[float, ...]
    unit: str
    larger_is_better: bool = True

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        """The smallest and the largest value, such as "6,374 to 6,381"; empty for a single round."""
        return f"{min(self.values):,.5g} to {max(self.values):,.5g}" if self.values[1:] else ""


@dataclasses.dataclass(frozen=True)
class Check:
    """A number that must not exceed a limit.

    Attributes:
      name: what is checked.
      value: the measured number.
      limit: the largest value that passes.
      note: the origin of the limit, or details of the result.
    """

    name: str
    value: float
    limit: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the value is within the limit; False for NaN."""
        return self.value <= self.limit


@dataclasses.dataclass(frozen=True)
class Failure:
    """An item that could not be measured, and why, in one line."""

    name: str
    reason: str


@dataclasses.dataclass
class StageRecord:
    """All results of a stage.

    Attributes:
      stage: name of the stage.
      question: the question that the stage answers.
      state: one of the states above.
      reason: why the stage timed out, failed or was skipped, or what it left out.
      seconds: total run time, over all starts of the stage.
      created: creation time of the record, in seconds since 1970; reports sort the stages by it.
      commit: commit of the measured code.
      versions: {package: version} at the time of the measurement.
      measurements: the measured quantities.
      checks: the checked numbers.
      failures: the items that could not be measured.
      details: further data of this stage, such as the kernels of a profile.
    """

    stage: str
    question: str = ""
    state: str = NOT_RUN
    reason: str = ""
    seconds: float = 0.0
    created: float = dataclasses.field(default_factory=time.time)
    commit: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    measurements: list[Measurement] = dataclasses.field(default_factory=list)
    checks: list[Check] = dataclasses.field(default_factory=list)
    failures: list[Failure] = dataclasses.field(default_factory=list)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "StageRecord":
        """Build a record from the output of `dataclasses.asdict`.

        Raises:
          One of NOT_A_RECORD: the values are not those of a record.
        """
        record = cls(**values)
        read = [Measurement(**row) for row in values["measurements"]]
        record.measurements = [
            dataclasses.replace(one, values=tuple(map(float, one.values))) for one in read
        ]
        record.checks = [Check(**row) for row in values["checks"]]
        record.failures = [Failure(**row) for row in values["failures"]]
        if not all(one.values for one in record.measurements):
            raise ValueError("a measurement has no values")
        numbers = [record.seconds, record.created]
        numbers += [number for one in record.checks for number in (one.value, one.limit)]
        items: list[Measurement | Check | Failure]
        items = [*record.measurements, *record.checks, *record.failures]
        texts = [record.stage, record.question, record.state, record.reason, record.commit]
        more = ("name", "unit", "note", "reason")
        texts += [getattr(item, name, "") for item in items for name in more]
        if not all(isinstance(text, str) for text in texts) or not all(map(_is_number, numbers)):
            raise TypeError("a field has the wrong type")
        record.details.keys(), record.versions.keys()
        return record

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to measure."""
        return self.state == DONE and not self.failures

    @property
    def is_good(self) -> bool:
        """Whether no check failed, and the stage is complete or was skipped for a missing package."""
        complete = self.is_complete or self.state == SKIPPED
        return complete and all(check.passed for check in self.checks)

    def summary(self) -> str:
        """Return a one-line summary of the results."""
        failed = [check.name for check in self.checks if not check.passed]
        parts = [
            f"{len(self.measurements)} measured" if self.measurements else "",
            f"{len(self.checks) - len(failed)} of {len(self.checks)} checks passed"
            if self.checks
            else "",
            f"{len(self.failures)} failed" if self.failures else "",
            self.reason,
        ]
        return ", ".join(part for part in parts if part)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def read_stage(file: pathlib.Path) -> StageRecord | None:
    """Read the record of a stage; return None if the file does not exist.

    Raises:
      ConfigError: the file cannot be read, or is not the record of a stage.
    """
    try:
        return StageRecord.from_json(json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except NOT_A_RECORD as error:
        raise ConfigError(f"is not the record of a stage: {one_line(error)}", key=file) from error


def write_json(file: pathlib.Path, values: Any) -> None:
    """Write a JSON file atomically: a reader sees either the old content or the new content.

    Raises:
      OutputError: the file cannot be written; its old content stays.
    """
    unfinished = file.with_suffix(".unfinished")
    with writing(file):
        unfinished.write_text(json.dumps(values, indent=1) + "\n")
        os.replace(unfinished, file)


class Recorder:
    """Write the record of a running stage. If an earlier start left a record, continue it.

    Args:
      file: path of the record.
      stage: name of the stage.
    """

    def __init__(self, file: pathlib.Path, stage: str):
        self.file = file
        self.record = read_stage(file) or StageRecord(stage)
        self._former, self._began = self.record.seconds, time.monotonic()
        # Retry failed items: the cause may be gone.
        self.record.failures, self.record.reason, self.record.state = [], "", RUNNING
        self.save()

    def save(self) -> None:
        """Write the record."""
        self.record.seconds = self._former + time.monotonic() - self._began
        write_json(self.file, dataclasses.asdict(self.record))

    def has(self, name: str) -> bool:
        """Whether an item of this name was measured or checked, in this start or an earlier one."""
        items: list[Measurement | Check] = [*self.record.measurements, *self.record.checks]
        return any(item.name == name for item in items)

    def measure(
        self,
        name: str,
        values: Sequence[float],
        unit: str,
        *,
        larger_is_better: bool = True,
        show: bool = True,
    ) -> None:
        """Record a measurement, replacing an earlier one of the same name, and print it if `show` is set."""
        others = [one for one in self.record.measurements if one.name != name]
        item = Measurement(name, tuple(values), unit, larger_is_better)
        self.record.measurements = [*others, item]
        self.save()
        if show:
            print(f"{name:42}{item.median:12.5g} {unit:10} {item.spread}", flush=True)

    def check(self, name: str, value: float, limit: float, note: str = "") -> None:
        """Record a check, replacing an earlier one of the same name, and print it."""
        item = Check(name, float(value), float(limit), note)
        self.record.checks = [*(one for one in self.record.checks if one.name != name), item]
        self.save()
        verdict = "passed" if item.passed else "FAILED"
        print(f"{verdict}  {name:42}{value:10.3g}, limit {limit:.3g}  {note}", flush=True)

    def fail(self, name: str, reason: str) -> None:
        """Record that an item could not be measured, and print why."""
        self.record.failures.append(Failure(name, reason))
        self.save()
        print(f"FAILED  {name}: {reason}", flush=True)

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Record an exception in the `with` block as the failure of this item; the next item still runs."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()  # to the stage's log
            memory = "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError)
            self.fail(name, "out of memory" if memory else one_line(error))

    def finish(self) -> None:
        """Mark the stage as done."""
        self.record.state = DONE
        self.save()
