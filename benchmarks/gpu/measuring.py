"""Measure the speed of a program in several rounds."""

import time
from collections.abc import Callable
from typing import Any

from benchmarks.speed.workloads import wait

ROUNDS = 5


def rates(call: Callable[[], Any], images: int, seconds: float) -> list[float]:
    """Run a program in rounds, after two warm-up calls.

    Args:
      call: starts the program once, and returns the array to wait for. Calls are queued, as in training.
      images: number of images per call.
      seconds: total duration of all rounds; a round has at least two calls.

    Returns:
      Images/s of each round.
    """

    def elapsed(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            result = call()
        wait(result)
        return time.perf_counter() - began

    elapsed(1)
    calls = max(2, min(1000, round(seconds / ROUNDS / elapsed(1))))
    return [calls * images / elapsed(calls) for _ in range(ROUNDS)]
