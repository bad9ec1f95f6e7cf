"""Function calls in separate processes: a process that aborts does not stop the others."""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from benchmarks.gpu.parent import end_with_parent


def each(
    function: Callable[[Any], Any], items: Mapping[str, Any], workers: int
) -> Iterator[tuple[str, Future]]:
    """Call a function on every item, and yield names and results as they become available.

    A process that aborts breaks its pool, and the pool's unfinished calls are lost. The remaining items then run
    one at a time, so that the next broken pool shows which item aborts.

    Args:
      function: called with an item; must be importable, because the processes are spawned.
      items: {name: item}; calls start in this order.
      workers: number of processes.

    Yields:
      A name and a finished future, with the function's result or exception.
    """
    left = dict(items)
    with _pool(workers) as pool:
        waiting = {pool.submit(function, item): name for name, item in items.items()}
        for future in as_completed(waiting):
            if not isinstance(future.exception(), BrokenProcessPool):
                left.pop(waiting[future])
                yield waiting[future], future
    while left:
        with _pool(1) as pool:
            yield from _until_broken(pool, function, left)


def _until_broken(
    pool: ProcessPoolExecutor, function: Callable[[Any], Any], left: dict[str, Any]
) -> Iterator[tuple[str, Future]]:
    """Call a function on one item after the other, removing it from `left`, until one breaks the pool."""
    for name in list(left):
        future = pool.submit(function, left.pop(name))
        broken = isinstance(future.exception(), BrokenProcessPool)
        yield name, future
        if broken:
            return


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent)
