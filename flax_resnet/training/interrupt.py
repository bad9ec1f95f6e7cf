"""Catch Ctrl-C and the signals of schedulers, so that training can save the state before the process ends."""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

# Slurm sends SIGUSR1 some time before the end of a job, if asked (sbatch --signal=USR1@90). Windows has no SIGUSR1.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")

Item = TypeVar("Item")


class Stopped(Exception):
    """A signal was received."""


@contextmanager
def stop_requested() -> Iterator[list[int]]:
    """Yield a list that receives the number of the first such signal; a second one of its kind acts as usual.

    Outside the main thread, no signal is caught, and the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    before = {int(number): signal.getsignal(number) for number in numbers}

    def note(number: int, frame: object) -> None:
        del frame
        if number in received:
            signal.signal(number, before[number])
            signal.raise_signal(number)
        received.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def until_stopped(items: Iterable[Item], received: list[int]) -> Iterator[Item]:
    """Yield the items; raise Stopped before the first one that follows a signal."""
    for item in items:
        if received:
            raise Stopped
        yield item
