"""The record of a stage: a JSON file, written anew after every item, so that a kill loses one item at most."""

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

from flax_resnet.errors import ConfigError, one_line

# States of a stage. NOT_RUN: there was no time, or it is not its turn yet. SKIPPED: a package is missing. A reader
# calls a running stage STOPPED. A stage runs again unless it is complete, and keeps the items that it has.
NOT_RUN, RUNNING, STOPPED, DONE = "not run", "running", "stopped", "done"
TIMED_OUT, FAILED, SKIPPED = "timed out", "failed", "skipped"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A quantity that was measured several times.

    Attributes:
      name: what was measured; the same name in another record is the same quantity.
      values: one per round, in `unit`.
      unit: such as "images/s" or "ms".
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
        """The least and the most, as "6,374 to 6,381"; "" of one round."""
        return f"{min(self.values):,.5g} to {max(self.values):,.5g}" if self.values[1:] else ""


@dataclasses.dataclass(frozen=True)
class Check:
    """A number that must not exceed a limit.

    Attributes:
      name: what is checked.
      value: what was found.
      limit: the largest value that passes.
      note: where the limit comes from, or more of what was found.
    """

    name: str
    value: float
    limit: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the value is within the limit; NaN is not."""
        return self.value <= self.limit


@dataclasses.dataclass(frozen=True)
class Failure:
    """An item that could not be measured, and why, in one line."""

    name: str
    reason: str


@dataclasses.dataclass
class StageRecord:
    """All that a stage found.

    Attributes:
      stage: its name.
      question: that it answers.
      state: one of the states above.
      reason: why it timed out, failed or was skipped, or what it left out.
      seconds: it took, over all its starts.
      created: when its record was made, in seconds since 1970: the order of stages.
      commit: of the code that measured it.
      versions: of packages that measured it, by name.
      measurements: what was measured.
      checks: what was checked.
      failures: what could not be measured.
      details: more, for a reader who knows the stage, such as the kernels of a profile.
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
        """Read what `dataclasses.asdict` wrote.

        Raises:
          TypeError, KeyError, ValueError or AttributeError: it is something else.
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
        texts += [text for item in items for text in (item.name, getattr(item, "unit", ""))]
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
        """Whether it is complete, or lacks a package, and no check failed."""
        complete = self.is_complete or self.state == SKIPPED
        return complete and all(check.passed for check in self.checks)

    def summary(self) -> str:
        """Return what the stage found in a few words."""
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
    return isinstance(value, (int, float))


def read_stage(file: pathlib.Path) -> StageRecord | None:
    """Read the record of a stage; None where there is none.

    Raises:
      ConfigError: the file holds something else.
    """
    try:
        return StageRecord.from_json(json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: is not the record of a stage: {one_line(error)}") from error


def write_json(file: pathlib.Path, values: Any) -> None:
    """Write a JSON file in one step: a reader finds the old one or the new one."""
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(values, indent=1) + "\n")
    os.replace(unfinished, file)


class Recorder:
    """Writes the record of a running stage, and goes on with that of an earlier start.

    Args:
      file: of the record.
      stage: name of the stage.
    """

    def __init__(self, file: pathlib.Path, stage: str):
        self.file = file
        self.record = read_stage(file) or StageRecord(stage)
        self._former, self._began = self.record.seconds, time.monotonic()
        # What failed is tried again: the reason may be gone.
        self.record.failures, self.record.reason, self.record.state = [], "", RUNNING
        self.save()

    def save(self) -> None:
        """Write the record."""
        self.record.seconds = self._former + time.monotonic() - self._began
        write_json(self.file, dataclasses.asdict(self.record))

    def has(self, name: str) -> bool:
        """Whether an item of this name was measured or checked, now or by an earlier start."""
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
        """Record a measurement, instead of an earlier one of its name, and print it with `show`."""
        kept = [one for one in self.record.measurements if one.name != name]
        item = Measurement(name, tuple(values), unit, larger_is_better)
        self.record.measurements = [*kept, item]
        self.save()
        if show:
            print(f"{name:42}{item.median:12.5g} {unit:10} {item.spread}", flush=True)

    def check(self, name: str, value: float, limit: float, note: str = "") -> None:
        """Record a check, instead of an earlier one of its name, and print it."""
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
        """Record what is raised within as the failure of an item, so that the next item has its turn."""
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
