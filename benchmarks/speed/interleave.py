"""Systems that take turns, each in a process of its own."""

import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.gpu.parent import end_with_parent

Turn = Callable[[int], float]  # of a turn's number, 0 to warm up; returns a speed


def interleave(
    systems: Mapping[str, Callable[[], Turn]], rounds: int
) -> Iterator[tuple[str, float | None]]:
    """Let the systems take turns, and yield (name, speed) of each turn that counts.

    Args:
      systems: by name; each is called in its process and returns what takes a turn.
      rounds: turns of each system that count; one more goes before, to warm up.

    Yields:
      The speed; None, once, of a system whose process died: its own message is on stderr.
    """
    context = multiprocessing.get_context("spawn")  # TensorFlow and torch do not bear one another
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
    """Let the systems take turns; print and return medians, and the first's ratio to each.

    Args:
      systems: as of `interleave`.
      rounds: as of `interleave`.
      unit: of the speeds.
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
    """Measure a turn of a system whenever asked, until told to stop."""
    end_with_parent()
    turn = make()
    while (number := connection.recv()) is not None:
        connection.send(turn(number))
