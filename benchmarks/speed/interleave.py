"""Measure systems in turns, each in its own process."""

import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.gpu.parent import end_with_parent

# Called with the number of the turn, 0 for the warm-up; returns a speed.
Turn = Callable[[int], float]


def interleave(
    systems: Mapping[str, Callable[[], Turn]], rounds: int
) -> Iterator[tuple[str, float | None]]:
    """Let the systems take turns, and yield (name, speed) for each timed turn.

    Args:
      systems: {name: factory}; each factory is called in its own process, and returns a function that takes a turn.
      rounds: timed turns per system, after one warm-up turn.

    Yields:
      The speed; or None, once, if the process of a system died (its message is on stderr).
    """
    # Separate processes, because TensorFlow and torch do not work in one process.
    context = multiprocessing.get_context("spawn")
    served = {}
    for name, make in systems.items():
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, make), daemon=True)
        process.start()
        there.close()
        served[name] = here
    for turn in range(rounds + 1):
        for name, connection in list(served.items()):
            try:
                connection.send(turn)
                speed = connection.recv()
            except (EOFError, OSError):
                del served[name]
                yield name, None
                continue
            if turn:
                yield name, speed
    for connection in served.values():
        connection.send(None)


def measure(
    systems: Mapping[str, Callable[[], Turn]], *, rounds: int, unit: str = "images/s"
) -> dict[str, Any]:
    """Let the systems take turns; print and return the medians, and the ratio of the first system's median to each.

    Args:
      systems: as in `interleave`.
      rounds: as in `interleave`.
      unit: unit of the speeds.
    """
    speeds: dict[str, list[float]] = {name: [] for name in systems}
    for name, speed in interleave(systems, rounds):
        if speed is None:
            sys.exit(f"error: {name}: its process died; its own message is above")
        speeds[name].append(speed)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    first = next(iter(medians.values()))
    rows = {}
    for name, values in speeds.items():
        rows[name] = {
            "n": rounds,
            "median": _digits(medians[name]),
            "spread": [_digits(min(values)), _digits(max(values))],
            "ratio": round(first / medians[name], 3),
        }
        print(f"{name:34}{medians[name]:10.1f} {unit}   {first / medians[name]:5.2f}", flush=True)
    return rows


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def _serve(connection: Any, make: Callable[[], Turn]) -> None:
    """Measure a turn for each number received, until None is received."""
    end_with_parent()
    turn = make()
    while (number := _received(connection)) is not None:
        connection.send(turn(number))


def _received(connection: Any) -> int | None:
    """Return the number of the next turn, or None if there is none or the parent has stopped."""
    try:
        return connection.recv()
    except EOFError:
        return None
