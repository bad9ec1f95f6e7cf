"""Metrics of training steps: read from the device with a delay, checked, and averaged into records."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from flax_resnet.config.train_section import Train
from flax_resnet.errors import DivergedError
from flax_resnet.training.ledger import Ledger
from flax_resnet.training.stages import STEP
from flax_resnet.training.step import loss_scale
from flax_resnet.training.step.nonfinite import SKIP


class StepMetrics:
    """The metrics of the steps since the last record.

    Args:
      updates: number of updates made before this start; below the number of steps if some updates were skipped.
      section: the settings of the training loop.
      ledger: the clock; the duration of steps excludes evaluations, checkpoints and compilation.
      unrecorded: the value of `unrecorded` when the run was saved, to continue its record; {} for none.

    Attributes:
      updates: number of updates made so far.
      ledger: the clock.
    """

    def __init__(
        self,
        updates: int,
        section: Train,
        ledger: Ledger,
        unrecorded: Mapping[str, Any] | None = None,
    ):
        self.updates = updates
        self.ledger = ledger
        self._section = section
        before = unrecorded or {}
        # Skipped steps, without those of the search for a loss scale.
        self._in_a_row: int = before.get("in_a_row", 0)
        self._count: int = before.get("count", 0)  # steps since the last record
        # {metric: [sum, number of steps that have it]}
        self._sums: dict[str, list[float]] = {k: [*v] for k, v in before.get("sums", {}).items()}
        self._seconds: float = before.get("seconds", 0.0)  # their duration
        self._unread: deque[tuple[int, dict[str, Any]]] = deque()  # (first step, metrics) of calls
        self._read_at = ledger.training_seconds()
        # Calls that may still run when the next one is dispatched. On CPU none: otherwise, memory would hold the
        # temporaries of both calls (memory.py).
        self._running = 0 if jax.default_backend() == "cpu" else 1

    def add(self, step: int, on_device: dict[str, jax.Array]) -> int:
        """Queue the metrics of a call that begins at `step`, and return the step after the call."""
        self._unread.append((step, on_device))
        return step + on_device["loss"].size

    def read(self, note: Callable[[int], None], *, all_calls: bool = False) -> None:
        """Read the queued metrics, except those of a call that may still run.

        Args:
          note: called with each step after its metrics are read.
          all_calls: also wait for calls that still run, and read their metrics.

        Raises:
          DivergedError: a loss is not finite; or, with skipped steps, too many are skipped in a row.
        """
        while len(self._unread) > (0 if all_calls else self._running):
            step, on_device = self._unread.popleft()
            with self.ledger.span(STEP):
                arrays = {k: np.atleast_1d(v.addressable_data(0)) for k, v in on_device.items()}
            now = self.ledger.training_seconds()
            spent, self._read_at = now - self._read_at, now
            count = len(arrays["loss"])
            for number in range(count):
                values = {k: float(v[number]) for k, v in arrays.items()}
                self._count += 1
                self._seconds += spent / count
                self._check(step + number + 1, values)
                self._add(values)
                note(step + number + 1)

    def _add(self, values: dict[str, float]) -> None:
        """Add the metrics of a step to the sums, without loss and top-1 if the loss is not finite."""
        has_loss = math.isfinite(values["loss"])
        for name, value in values.items():
            if has_loss or name not in ("loss", "top1"):
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = [total + value, count + 1]

    def _check(self, step: int, values: dict[str, float]) -> None:
        """Count the update, and raise DivergedError if training has diverged."""
        is_finite, skips = math.isfinite(values["loss"]), self._section.on_nonfinite == SKIP
        if not is_finite and not skips:
            raise DivergedError(
                f"not finite at step {step}",
                key="loss",
                value=values["loss"],
                cure="set train.on_nonfinite='skip' to leave out such steps",
            )
        skipped = values.get("skipped", 0) > 0
        self.updates += not skipped
        searches = is_finite and values.get("loss_scale", 0.0) > loss_scale.LEAST
        self._in_a_row = self._in_a_row + 1 if skipped and not searches else 0
        if skips and self._in_a_row == self._section.most_skipped:
            raise DivergedError(
                f"not finite in {self._in_a_row} steps in a row, the last of them step {step}",
                key="gradient" if is_finite else "loss",
                value=... if is_finite else values["loss"],
                cure="increase train.most_skipped to skip more steps",
            )
        if not skips and self._in_a_row == loss_scale.PATIENCE:
            raise DivergedError(
                f"overflowed {loss_scale.PATIENCE} times in a row at the smallest loss scale, "
                f"{loss_scale.LEAST:g}, at step {step}",
                key="gradient",
                cure="set model.dtype='bfloat16', which needs no loss scale",
            )

    def means(self) -> dict[str, float]:
        """Return the means over the steps since the last record, and `images_per_second`; {} without steps.

        Without any finite loss, `loss` and `top1` are left out.
        """
        if not self._count:
            return {}
        means = {name: total / count for name, (total, count) in self._sums.items()}
        images = self._count * self._section.batch_size
        return means | {"images_per_second": images / self._seconds}

    @property
    def unrecorded(self) -> dict[str, Any]:
        """The sums over the steps since the last record, as a JSON object."""
        return {
            "count": self._count,
            "sums": self._sums,
            "seconds": self._seconds,
            "in_a_row": self._in_a_row,
        }

    def clear(self) -> None:
        """Start a new record."""
        self._count, self._sums, self._seconds = 0, {}, 0.0
