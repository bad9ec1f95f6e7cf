"""The ledger of wall time: a clock that is always in exactly one stage, so that the stages add up to the total."""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.profiler import TraceAnnotation

from flax_resnet.training.stages import COMPILING, LEDGER_STAGES, PREPARING, STAGE_OF, TRAINING

COMPILATION = "/jax/core/compile/"  # JAX's events of tracing, lowering and compiling begin so


class Ledger:
    """Measures the wall time of each stage of a start, from its beginning.

    One thread switches the stages. Any thread may read the seconds.

    Args:
      began: the value of `clock` when the start began; None for now.
      clock: a function that returns the time in seconds.

    Attributes:
      step: number of updates made so far, which the training loop sets.
    """

    def __init__(
        self, began: float | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.step = 0
        self._clock = clock
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._seconds = dict.fromkeys(LEDGER_STAGES, 0.0)  # before `_since`
        self._stage = PREPARING
        self._since = clock() if began is None else began
        self._compiled = 0.0  # of the time since `_since`
        self._compilations: list[tuple[float, float]] = []  # their spans: disjoint, and in order

    def switch(self, stage: str) -> str:
        """Begin a stage, and return the stage that it ends."""
        before = self._stage
        if stage != before:
            with self._lock:
                now = self._clock()
                self._seconds[before] += now - self._since - self._compiled
                self._seconds[COMPILING] += self._compiled
                self._stage, self._since, self._compiled = stage, now, 0.0
        return before

    def stage(self, stage: str) -> "_Stage":
        """Return a context in a stage; after it, the stage before goes on."""
        return _Stage(self, stage, None)

    def span(self, name: str) -> "_Stage":
        """Return a context that is a span of the profile, in the stage that the span belongs to."""
        return _Stage(self, STAGE_OF[name], TraceAnnotation(name))

    def seconds(self) -> dict[str, float]:
        """Return {stage: seconds so far}, of all stages."""
        with self._lock:
            seconds = dict(self._seconds)
            seconds[self._stage] += self._clock() - self._since - self._compiled
            seconds[COMPILING] += self._compiled
            return seconds

    def training_seconds(self) -> float:
        """Return the seconds so far of the stages that `images_per_second` measures."""
        seconds = self.seconds()
        return sum([seconds[stage] for stage in TRAINING])

    @contextmanager
    def counting_compilation(self) -> Iterator[None]:
        """Count JAX's compilations in the ledger's thread as their own stage inside this block.

        Other threads compile while this one does something else, which is what the ledger measures.
        """
        _listen()
        before = _counting.get(self._thread)
        _counting[self._thread] = self
        try:
            yield
        finally:
            del _counting[self._thread]
            if before:
                _counting[self._thread] = before

    def compiled(self, seconds: float) -> None:
        """Move the last `seconds` of the current stage to compilation.

        Events may contain each other: tracing a function compiles the constants that it computes. So only the time
        that no earlier event covers is moved.
        """
        with self._lock:
            now = self._clock()
            began = first = max(now - seconds, self._since)
            covered = 0.0
            while self._compilations and self._compilations[-1][1] > began:
                start, end = self._compilations.pop()
                covered += end - max(start, began)
                first = min(first, start)
            self._compilations.append((first, now))
            self._compiled += max(0.0, now - began - covered)


class _Stage:
    """The context that `Ledger.stage` and `Ledger.span` return. A class is faster than a generator."""

    __slots__ = ("_annotation", "_before", "_ledger", "_stage")

    def __init__(self, ledger: Ledger, stage: str, annotation: TraceAnnotation | None) -> None:
        self._ledger, self._stage, self._annotation = ledger, stage, annotation
        self._before = stage

    def __enter__(self) -> None:
        self._before = self._ledger.switch(self._stage)
        if self._annotation is not None:
            self._annotation.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._annotation is not None:
            self._annotation.__exit__(*error)
        self._ledger.switch(self._before)


_counting: dict[int, Ledger] = {}  # {thread: the ledger that counts its compilations}


@functools.cache
def _listen() -> None:
    """Receive JAX's events from now on. Not every version of JAX can remove a listener again."""
    jax.monitoring.register_event_duration_secs_listener(_note)


def _note(event: str, duration_secs: float, **_: str | int) -> None:
    if event.startswith(COMPILATION) and (ledger := _counting.get(threading.get_ident())):
        ledger.compiled(duration_secs)
