"""Calls in processes of their own, of which one that aborts takes no other with it."""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from benchmarks.gpu.parent import end_with_parent


def each(
    function: Callable[[Any], Any], items: Mapping[str, Any], workers: int
) -> Iterator[tuple[str, Future]]:
    """Call a function of every item, and yield names and results, as they come.

    A process that aborts breaks its pool, and everything that the pool has not returned. What is left then runs one
    item at a time, so that the next pool that breaks tells which item it was.

    Args:
      function: of an item; importable, as the processes are spawned.
      items: by name; the first starts first.
      workers: processes at a time.

    Yields:
      A name and a future that is done: with a result, or with what the function raised.
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
    """Call a function of one item after the other, and take each away, until one breaks the pool."""
    for name in list(left):
        future = pool.submit(function, left.pop(name))
        broken = isinstance(future.exception(), BrokenProcessPool)
        yield name, future
        if broken:
            return


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent)
