"""The watch of a process over the others: failures, losses, and the step at which all stop.

A collective operation waits for all processes, without end. So a thread of each process writes to the store of
JAX's runtime every half second, and reads what the others wrote:

    beat/P      a number that grows while process P lives, and its number of boundaries
    failed/P    the exit code and the line of an error that ends process P: all others end with them
    stop/P      process P received a signal: all stop at the same boundary
    at/P        the number of boundaries that process P had passed when it learnt of that signal
    left/P      process P has ended

A boundary is a point between two calls of compiled programs at which a process may stop. All processes pass the
same boundaries in the same order, but not at the same moment. At a signal, each process tells how many it has
passed, and waits at the next one. They then go on to the largest of these numbers, and stop there.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from flax_resnet.errors import LOST, one_line

PREFIX = "flax_resnet"  # of all our keys in the store
PERIOD = 0.5  # seconds
# A process whose main thread stands still while others go on is lost after this many times the usual time.
PATIENCE = 10
# Seconds that the main thread has to end by itself after another process failed; it may be in a collective forever.
GRACE = 5.0
# Seconds that process 0, which serves the others, waits until they have read of a failure.
FAREWELL = 10.0
CURE = "all processes end; run the same command again to resume"


class Watch:
    """The watch of this process. `start` starts its threads, which end with the process or at `stop`.

    Args:
      store: the client of JAX's runtime; see `exchange.store`.
      process: the number of this process.
      count: number of processes.
      lost_after: seconds without a sign of life after which a process counts as lost.
      end: called with the exit code to end this process at once.
    """

    def __init__(
        self,
        store: Any,
        process: int,
        count: int,
        lost_after: float,
        *,
        end: Callable[[int], None] = os._exit,
    ):
        self._store, self._process, self._count = store, process, count
        self._lost_after, self._end = lost_after, end
        self._state = threading.Condition()
        self._passed = 0  # boundaries
        self._is_stopping = False
        self._was_told = False  # this process has told its number of boundaries
        self._stop_at: int | None = None  # boundaries that all pass before they stop
        self._failure: dict[str, Any] | None = None
        self._was_reported = False
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._spoke = time.monotonic()  # time of the last exchange with the store
        self._beats: dict[int, tuple[int, int]] = {}  # {process: (beat, passed)}
        self._silent: dict[int, float] = {}  # {process: seconds without a new beat}
        self._behind: dict[
            int, float
        ] = {}  # {process: seconds without a boundary, while others are ahead}

    def start(self) -> None:
        """Start the threads."""
        for action in (self._talk, self._judge):
            thread = threading.Thread(target=action, name="watch", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End the threads, which use the store."""
        self._closed.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(10 * PERIOD)

    def request_stop(self) -> None:
        """Ask all processes to stop at the next boundary that all can reach. Safe in a signal handler."""
        self._is_stopping = (
            True  # the thread passes it on, because a handler must not wait for the store
        )

    def must_stop(self) -> bool:
        """Pass a boundary, and return whether to stop at it; the answer is the same in all processes."""
        with self._state:
            while self._was_told and self._stop_at is None:
                self._state.wait(PERIOD)  # signals are handled between two waits
            if self._stop_at is not None and self._passed >= self._stop_at:
                return True
            self._passed += 1
            return False

    def fail(self, code: int, line: str) -> None:
        """Tell the others that an error ends this process; they end with the same exit code."""
        text = json.dumps({"process": self._process, "code": code, "line": line})
        self._set(f"failed/{self._process}", text)

    def failure(self, seconds: float) -> dict[str, Any] | None:
        """Return the failure of another process, waiting for one up to some seconds: "process", "code", "line"."""
        with self._state:
            self._state.wait_for(lambda: self._failure is not None, seconds)
            return self._failure

    def leave(self) -> None:
        """Tell the others that this process ends; process 0 waits until they have told so."""
        self._set(f"left/{self._process}", "")
        deadline = time.monotonic() + FAREWELL
        while self._process == 0 and time.monotonic() < deadline:
            left = {name for name, _ in self._read() if name.startswith("left/")}
            gone = {f"left/{number}" for number, silent in self._silent.items() if silent > 2}
            if len(left | gone) >= self._count:
                return
            time.sleep(PERIOD / 5)

    @property
    def lost_within(self) -> float:
        """Seconds within which a loss is noticed and told."""
        return self._lost_after + GRACE

    def _set(self, name: str, value: str) -> None:
        try:
            self._store.key_value_set(f"{PREFIX}/watch/{name}", value, allow_overwrite=True)
        except Exception as error:  # process 0 is gone
            _say(f"warning: cannot tell the other processes: {one_line(error)}")

    def _read(self) -> list[tuple[str, str]]:
        """Return what the processes wrote: (name, value) pairs."""
        place = f"{PREFIX}/watch/"
        try:
            return [
                (name.removeprefix(place), value)
                for name, value in self._store.key_value_dir_get(place)
            ]
        except Exception:  # process 0 is gone; `_judge` sees to it
            return []

    def _talk(self) -> None:
        """Exchange with the store, until `stop`."""
        beat = 0
        while not self._closed.wait(PERIOD):
            beat += 1
            if self._is_stopping:
                self._set(f"stop/{self._process}", "")
            self._set(f"beat/{self._process}", f"{beat} {self._passed}")
            found = dict(self._read())
            if f"beat/{self._process}" in found:
                self._spoke = time.monotonic()
                self._learn(found)

    def _learn(self, found: dict[str, str]) -> None:
        """Take in what the processes wrote."""
        failed = [json.loads(v) for name, v in found.items() if name.startswith("failed/")]
        if others := [failure for failure in failed if failure["process"] != self._process]:
            self._end_with(others[0])
        if not self._was_told and any(name.startswith("stop/") for name in found):
            with self._state:
                self._was_told = True
                passed = self._passed
            self._set(f"at/{self._process}", str(passed))
        at = [int(value) for name, value in found.items() if name.startswith("at/")]
        if len(at) == self._count:
            with self._state:
                self._stop_at = max(at)
                self._state.notify_all()
        self._count_silence(found)
        if self._process == 0:
            self._announce_loss(found)

    def _count_silence(self, found: dict[str, str]) -> None:
        """Count how long each process gave no sign, in this thread's own periods: a suspended job loses nobody."""
        beats = {
            int(name.removeprefix("beat/")): tuple(map(int, value.split()))
            for name, value in found.items()
            if name.startswith("beat/")
        }
        ahead = max((passed for _, passed in beats.values()), default=0)
        for number in range(self._count):
            beat, passed = beats.get(number, (0, 0))
            before = self._beats.get(number, (0, 0))
            self._silent[number] = (
                0.0 if beat != before[0] else self._silent.get(number, 0) + PERIOD
            )
            stands = passed == before[1] and passed < ahead
            self._behind[number] = self._behind.get(number, 0) + PERIOD if stands else 0.0
            self._beats[number] = (beat, passed)

    def _announce_loss(self, found: dict[str, str]) -> None:
        """In process 0: end the run if a process is silent, or stands still while others go on."""
        for number in range(self._count):
            if f"left/{number}" in found:
                continue
            if self._silent.get(number, 0) > self._lost_after:
                problem = f"has given no sign of life for {self._lost_after:.0f} s"
            elif self._behind.get(number, 0) > PATIENCE * self._lost_after:
                problem = (
                    f"has stood still for {PATIENCE * self._lost_after:.0f} s while others went on"
                )
            else:
                continue
            line = f"process {number} {problem}: {CURE}"
            self.fail(LOST, line)
            self._end_with({"process": number, "code": LOST, "line": line})

    def _end_with(self, failure: dict[str, Any]) -> None:
        """End this process because of a failure elsewhere. The main thread may do so itself within `GRACE`."""
        with self._state:
            if self._failure is not None:
                return
            self._failure = failure
            self._state.notify_all()
        threading.Thread(target=self._end_late, args=(failure,), daemon=True).start()

    def _end_late(self, failure: dict[str, Any]) -> None:
        if not self._closed.wait(GRACE):
            self.report(failure)
            self.leave()
            self._end(failure["code"])

    def report(self, failure: dict[str, Any]) -> None:
        """Print a failure of another process, in process 0 only: its own process prints it too, if it can."""
        with self._state:
            is_first, self._was_reported = not self._was_reported, True
        if is_first and self._process == 0:
            own = failure["code"] == LOST
            line = failure["line"] if own else f"process {failure['process']}: {failure['line']}"
            _say(f"error: {line}")

    def _judge(self) -> None:
        """End this process if the store, which process 0 serves, does not answer. This thread never calls it."""
        silent, spoke = 0.0, self._spoke
        while not self._closed.wait(PERIOD):
            silent, spoke = (silent + PERIOD if spoke == self._spoke else 0.0), self._spoke
            if silent > self._lost_after:
                _say(f"error: process 0 has not answered for {self._lost_after:.0f} s: {CURE}")
                self._end(LOST)
                return


def _say(line: str) -> None:
    """Print to standard error. If that is closed or full, the line is lost: a lost run must end nevertheless."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


_current: Watch | None = None


def current() -> Watch | None:
    """Return the watch of this process, or None if it trains alone."""
    return _current


def set_current(watch: Watch | None) -> None:
    """Make `watch` the watch of this process."""
    global _current
    _current = watch
