"""The account of a run's wall time over all of its starts, in times.jsonl: one line per start.

A process writes its own line again every few seconds, so a killed one leaves its account up to the last time. The
whole file is replaced each time: it is small, and a reader never sees half of a line.
"""

import contextlib
import dataclasses
import datetime
import json
import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import jax

from flax_resnet.errors import WorkdirError
from flax_resnet.training.ledger import Ledger
from flax_resnet.training.runs.folder import RunFolder
from flax_resnet.training.stages import LEDGER_STAGES, LOST, OTHER, STEPPING

PERIOD = 5.0  # seconds between two writes
STAGES = (*(stage for stage in LEDGER_STAGES if stage != OTHER), LOST, OTHER)


class StartTimes(NamedTuple):
    """The wall time of one start of a run.

    Attributes:
      began: date and time of the beginning, in ISO format.
      first_step: number of updates made before this start.
      last_step: number of updates made at its end, or when it last wrote this.
      seconds: {stage: seconds}, by the ledger.
    """

    began: str
    first_step: int
    last_step: int
    seconds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class TimeAccount:
    """The wall time of a run.

    Attributes:
      starts: the starts of the run, in order.
    """

    starts: tuple[StartTimes, ...] = ()

    @property
    def seconds(self) -> dict[str, float]:
        """{stage: seconds over all starts}, of all stages and of what was lost; they add up to the total."""
        seconds = dict.fromkeys(STAGES, 0.0)
        for start, lost in zip(self.starts, lost_seconds(self.starts), strict=True):
            for stage, value in start.seconds.items():
                seconds[stage] += value
            seconds[STEPPING] -= lost
            seconds[LOST] += lost
        return seconds

    @property
    def total(self) -> float:
        """The seconds of all starts."""
        return math.fsum(value for start in self.starts for value in start.seconds.values())

    @property
    def shares(self) -> dict[str, float]:
        """{stage: share of the total}; they add up to 1. {} for no time."""
        total = self.total
        return {stage: value / total for stage, value in self.seconds.items()} if total else {}

    def __str__(self) -> str:
        """Format the total, the number of starts, and the share of each stage that took time."""
        count = len(self.starts)
        head = f"{clock(self.total)} in {count} start{'s' if count != 1 else ''}"
        parts = [f"{stage} {share:.1%}" for stage, share in self.shares.items() if share >= 0.0005]
        return f"{head}: {', '.join(parts)}" if parts else head


def lost_seconds(starts: Sequence[StartTimes]) -> list[float]:
    """Return the seconds of each start that were spent on steps that a later start did again.

    A start keeps the steps up to the checkpoint from which a later one resumed. Its other steps took the same time
    each, for all we know.
    """
    lost, kept = [], math.inf
    for start in reversed(starts):
        steps = start.last_step - start.first_step
        again = min(steps, max(0, start.last_step - kept))
        lost.append(start.seconds.get(STEPPING, 0.0) * again / steps if again else 0.0)
        kept = min(kept, start.first_step)
    return lost[::-1]


def read_account(folder: RunFolder) -> TimeAccount:
    """Read the account of a run. A line that holds no start is ignored, as is a file that cannot be read."""
    found = (_start_of(line) for line in folder.read_times().splitlines())
    return TimeAccount(tuple(start for start in found if start))


def _start_of(line: str) -> StartTimes | None:
    """Return the start that a line holds, or None if it holds something else."""
    try:
        values = json.loads(line)
        start = StartTimes(**values)
        numbers = start.seconds.items()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    is_start = (
        isinstance(start.began, str)
        and all(type(step) is int for step in (start.first_step, start.last_step))
        and 0 <= start.first_step <= start.last_step
        and all(stage in LEDGER_STAGES and _is_duration(value) for stage, value in numbers)
    )
    return start if is_start else None


def _is_duration(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e12  # neither infinite nor NaN


def clock(seconds: float) -> str:
    """Format seconds as 1:02 or 1:02:03."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class AccountWriter:
    """Writes the account of a run while this block runs: at its begin, every `PERIOD` seconds, and at its end.

    Of a run with several processes, process 0 writes. A disk that is full loses the account, and nothing else.

    Args:
      folder: the run folder.
      ledger: the ledger of this start.
      first_step: number of updates made before this start.
    """

    def __init__(self, folder: RunFolder, ledger: Ledger, first_step: int) -> None:
        self._folder, self._ledger, self._first_step = folder, ledger, first_step
        ledger.step = first_step
        self._earlier = read_account(folder).starts
        spent = datetime.timedelta(seconds=sum(ledger.seconds().values()))
        began = datetime.datetime.now(datetime.UTC) - spent
        self._began = began.isoformat(timespec="milliseconds")
        self._ended = threading.Event()
        # A thread, because the training thread may compile or evaluate for many minutes.
        self._thread = threading.Thread(target=self._write_often, name="time account", daemon=True)

    def account(self) -> TimeAccount:
        """Return the account of all starts, with this one up to now."""
        seconds = {stage: round(value, 6) for stage, value in self._ledger.seconds().items()}
        this = StartTimes(self._began, self._first_step, self._ledger.step, seconds)
        return TimeAccount((*self._earlier, this))

    def __enter__(self) -> Self:
        if not jax.process_index():
            self._write()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not jax.process_index():
            self._ended.set()
            self._thread.join()
            self._write()

    def _write_often(self) -> None:
        while not self._ended.wait(PERIOD):
            self._write()

    def _write(self) -> None:
        lines = (json.dumps(start._asdict()) + "\n" for start in self.account().starts)
        with contextlib.suppress(WorkdirError):
            self._folder.write_times("".join(lines))
