"""Input pipelines that take turns, each in a process of its own."""

import multiprocessing
import statistics
import time
from collections.abc import Callable

BATCH, SKIPPED = 64, 6  # the first batches of a turn fill the queues, and are not counted


def measure(systems: dict[str, Callable], *, rounds: int, images: int) -> dict:
    """Lets the systems, a process each, take turns; prints and returns medians, and the first's ratio to each.

    Args:
      systems: by name, what makes a function of (images, turn) that yields the sizes of batches.
      rounds: turns of each system that count.
      images: of a turn.
    """
    context = multiprocessing.get_context("spawn")  # TensorFlow and torch do not bear one another
    served = {}
    for name, make in systems.items():
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(there, make))
        process.start()
        there.close()
        served[name] = here
    speeds = {name: [] for name in systems}
    for turn in range(rounds + 1):  # the first turn warms up
        for name, connection in served.items():
            connection.send((images, turn))
            speed = connection.recv()
            if turn:
                speeds[name].append(speed)
    for connection in served.values():
        connection.send(None)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    first = next(iter(medians.values()))
    rows = {}
    for name, values in speeds.items():
        rows[name] = {
            "images_per_second": round(medians[name]),
            "spread": [round(min(values)), round(max(values))],
            "ratio": round(first / medians[name], 3),
        }
        print(f"{name:34}{medians[name]:8.0f} images/s   {first / medians[name]:5.2f}", flush=True)
    return rows


def serve(connection: object, make: Callable) -> None:
    """Measures a turn of a system whenever asked, until told to stop."""
    batches = make()
    while (task := connection.recv()) is not None:
        images, turn = task
        stream = batches(images, turn)
        for _ in range(SKIPPED):
            next(stream)
        began, count = time.perf_counter(), sum(stream)
        connection.send(count / (time.perf_counter() - began))
