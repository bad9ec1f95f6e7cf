"""The time when the process of a command began. This module imports nothing slow, so the imports count too."""

import time

_began: list[float] = []


def note_start() -> None:
    """Note that the process of a command begins now. Call it before slow imports."""
    _began.append(time.perf_counter())


def taken_start() -> float | None:
    """Return the noted time of `time.perf_counter()`, once: None afterwards, or if this process is no command."""
    return _began.pop() if _began else None
