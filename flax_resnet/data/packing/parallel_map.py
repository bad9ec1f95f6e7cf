"""A parallel map with threads that work ahead and results in order."""

import concurrent.futures
import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4  # queued tasks per thread, so that no thread waits for a slow earlier task


@contextlib.contextmanager
def in_order(function: Callable[[T], R], tasks: Iterable[T], threads: int) -> Iterator[Iterator[R]]:
    """Return a context with an iterator over the results of a function, in the order of the tasks.

    Args:
      function: called by several threads in parallel.
      tasks: read at most AHEAD tasks per thread in advance.
      threads: number of threads, at least 1.
    """
    pool = concurrent.futures.ThreadPoolExecutor(threads)

    def results() -> Iterator[R]:
        rest = iter(tasks)
        waiting: deque[concurrent.futures.Future[R]] = deque()
        while True:
            room = AHEAD * threads - len(waiting)
            waiting += [pool.submit(function, task) for task in itertools.islice(rest, room)]
            if not waiting:
                return
            yield waiting.popleft().result()

    try:
        yield results()
    finally:
        pool.shutdown(cancel_futures=True)
