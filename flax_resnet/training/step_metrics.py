"""Metrics of training steps: read from the device late, checked, and averaged into records."""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.profiler import TraceAnnotation

from flax_resnet.errors import DivergedError
from flax_resnet.training.stages import STEP
from flax_resnet.training.step import loss_scale


class StepMetrics:
    """The metrics of the steps since the last record.

    Args:
      updates: made before, fewer than the steps where float16 skipped some.
      batch_size: images per step.

    Attributes:
      updates: made so far.
    """

    def __init__(self, updates: int, batch_size: int):
        self.updates = updates
        self._batch_size = batch_size
        self._overflows = 0  # steps in a row
        self._values: list[dict[str, float]] = []  # of each step since the last record
        self._seconds: list[float] = []  # of each of these steps
        self._unread: deque[tuple[int, dict[str, Any]]] = deque()  # first step and metrics of calls
        self._read_at = time.perf_counter()
        # Calls that may run while the next is dispatched. A CPU would hold the temporaries of both (memory.py).
        self._running = 0 if jax.default_backend() == "cpu" else 1

    def add(self, step: int, on_device: dict[str, jax.Array]) -> int:
        """Queue the metrics of a call that begins at a step, and return the step after it."""
        self._unread.append((step, on_device))
        return step + on_device["loss"].size

    def read(self, note: Callable[[int], None], *, all_calls: bool = False) -> None:
        """Read the metrics of the calls that must have ended, or of all calls.

        Args:
          note: called with each step whose metrics were read.
          all_calls: also those that may still run: the host waits for them.

        Raises:
          DivergedError: a loss is not finite, or the gradient overflows without end.
        """
        while len(self._unread) > (0 if all_calls else self._running):
            step, on_device = self._unread.popleft()
            with TraceAnnotation(STEP):
                arrays = {k: np.atleast_1d(v.addressable_data(0)) for k, v in on_device.items()}
            now = time.perf_counter()
            spent, self._read_at = now - self._read_at, now
            count = len(arrays["loss"])
            for number in range(count):
                self._values.append({k: float(v[number]) for k, v in arrays.items()})
                self._seconds.append(spent / count)
                self._check(step + number + 1)
                note(step + number + 1)

    def _check(self, step: int) -> None:
        """Count the update, and raise DivergedError where training makes no sense any more."""
        values = self._values[-1]
        if not math.isfinite(values["loss"]):
            raise DivergedError(f"the loss is {values['loss']} at step {step}")
        skipped = values.get("skipped", 0) > 0
        self.updates += not skipped
        stuck = skipped and values["loss_scale"] <= loss_scale.LEAST
        self._overflows = self._overflows + 1 if stuck else 0
        if self._overflows == loss_scale.PATIENCE:
            raise DivergedError(
                f"the gradient overflowed {loss_scale.PATIENCE} times in a row at the least loss scale, "
                f"{loss_scale.LEAST:g} (model.dtype='bfloat16' needs none), at step {step}"
            )

    def means(self) -> dict[str, float]:
        """Return the means over the steps since the last record, and `images_per_second`; {} without steps."""
        if not self._values:
            return {}
        count = len(self._values)
        means = {k: sum(values[k] for values in self._values) / count for k in self._values[0]}
        return means | {"images_per_second": count * self._batch_size / sum(self._seconds)}

    def clear(self) -> None:
        """Begin a new record."""
        self._values.clear()
        self._seconds.clear()

    def skip_time(self, seconds: float) -> None:
        """Leave time out of the steps' own: an evaluation, or a checkpoint."""
        self._read_at += seconds
