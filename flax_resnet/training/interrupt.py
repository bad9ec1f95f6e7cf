"""Catch Ctrl-C and the signals of schedulers, so that training can save the state before the process ends."""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from flax_resnet.training.processes import watch

# Slurm sends SIGUSR1 some time before the end of a job, if asked (sbatch --signal=USR1@90). Windows has no SIGUSR1.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")

Item = TypeVar("Item")


class Stopped(Exception):
    """A signal was received."""


class Stop:
    """Tells a run whether to stop because of a signal. With several processes, all stop at the same boundary.

    Attributes:
      received: the numbers of the signals that this process received.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._watch = watch.current()

    def note(self, number: int) -> None:
        """Receive a signal."""
        self.received.append(number)
        if self._watch:
            self._watch.request_stop()

    def requested(self) -> bool:
        """Pass a boundary, and return whether to stop there; the answer is the same in all processes.

        All processes call this at the same places, between the same calls of compiled programs.
        """
        return self._watch.must_stop() if self._watch else bool(self.received)


@contextmanager
def stop_requested() -> Iterator[Stop]:
    """Yield an object that receives the first signal of each kind; a second one of a kind acts as usual.

    Outside the main thread, no signal is caught; nor in one of several processes that have no watch to agree by.
    """
    import jax  # slow, and commands import this module first

    stop = Stop()
    unwatched = jax.process_count() > 1 and watch.current() is None
    if unwatched or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    before = {int(number): signal.getsignal(number) for number in numbers}

    def note(number: int, frame: object) -> None:
        del frame
        if number in stop.received:
            signal.signal(number, before[number])
            signal.raise_signal(number)
        stop.note(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def until_stopped(items: Iterable[Item], stop: Stop) -> Iterator[Item]:
    """Yield the items; raise Stopped before the first one that follows a signal."""
    for item in items:
        if stop.requested():
            raise Stopped
        yield item
