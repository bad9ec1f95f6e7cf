"""The loop itself: updates, records, evaluations and checkpoints, in the order in which they happen."""

import dataclasses
import logging
import math
import pathlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.profiler import TraceAnnotation, annotate_function

from flax_resnet.config import Config
from flax_resnet.config.plan import Plan
from flax_resnet.data.records import Source
from flax_resnet.errors import DivergedError
from flax_resnet.optim.metrics import has_stalled, score
from flax_resnet.optim.optimizers import updates_made
from flax_resnet.training.interrupt import Interrupted, stop_requested
from flax_resnet.training.runs.checkpoint import Checkpoints
from flax_resnet.training.runs.writers import Progress, RecordWriter
from flax_resnet.training.state import TrainState
from flax_resnet.training.step import loss_scale
from flax_resnet.training.step.eval_step import evaluate

log = logging.getLogger("flax_resnet")

# What the loop does, by the names that its spans have in a profile. The host waits for a batch, hands the step to
# the device, and then waits for the results of the call before: that is where a GPU's time shows. On a CPU it waits
# for those of the same call, and the time shows where the step is handed over, or there.
INPUT, DISPATCH, STEP, RECORDS, EVALUATION, CHECKPOINT = STAGES = (
    "input",
    "dispatch",
    "step",
    "records",
    "evaluation",
    "checkpoint",
)


@dataclasses.dataclass
class Run:
    """A run from one step to the end of its plan.

    Attributes:
      config: the configuration.
      plan: what it means for the data.
      folder: the run folder.
      checkpoints: of the run folder.
      judged_from: evaluations before this step do not count for an early stop.
      train_step: as `make_train_step` makes it.
      taught: the variables of the teacher, or nothing.
      parts: into which it divides a batch.
      learnt_from: checksum of the teacher, or None.
      eval_step: as `make_eval_step` makes it.
      recalibrate: as `make_recalibration` makes it, or None.
      train_feed: of the training split.
      eval_feed: of the evaluation split.
      learning_rate: updates made before -> learning rate.
      source: what is trained on.
    """

    config: Config
    plan: Plan
    folder: pathlib.Path
    checkpoints: Checkpoints
    judged_from: int
    train_step: Any
    taught: tuple
    parts: int
    learnt_from: int | None
    eval_step: Any
    recalibrate: Any
    train_feed: Any
    eval_feed: Any
    learning_rate: Any
    source: Source

    def go(self, state: TrainState, start: int) -> list[dict]:
        """Trains from `start` to the last step, or to an early stop, and returns all records of the run.

        Raises:
          Interrupted: a signal came; the state was saved.
          UserError: data, disk or numbers failed; whatever was saved stays as it was.
        """
        plan, split = self.plan, self.config.data.eval_split
        self._writer = RecordWriter(self.folder, start)
        self._progress = Progress(plan.total_steps, start)
        self._updates = updates_made(state.opt_state)
        self._overflows = 0  # steps in a row
        self._window: list[dict[str, float]] = []
        self._seconds: list[float] = []  # of each step in the window
        self._read_at = time.perf_counter()
        self._unread: deque[tuple[int, dict]] = deque()  # first step and metrics of each call
        step = start
        # Calls that may run while the next is dispatched. A CPU would hold the temporaries of both (memory.py).
        running = 0 if jax.default_backend() == "cpu" else 1
        try:
            with stop_requested() as stop:
                for batches in _timed(self.train_feed.training(start, plan.total_steps)):
                    with TraceAnnotation(DISPATCH):
                        state, on_device = self.train_step(
                            state, self.train_feed.data, batches, *self.taught
                        )
                    self._unread.append((step, on_device))
                    self._read_metrics(but=running)
                    step += len(on_device["loss"])
                    evaluates = step == plan.total_steps or step % plan.eval_every == 0
                    stopping = bool(stop)  # asked once: a signal during what follows waits a step
                    saves = stopping or step % plan.checkpoint_every == 0
                    if evaluates or saves:
                        self._read_metrics()
                        state = self._recalibrated(state) if self.recalibrate else state
                    metrics = self._evaluate(state, step) if evaluates else None
                    ends = step == plan.total_steps or (evaluates and self._has_stalled())
                    if ends:
                        self._write_window(step)
                    if saves or ends:
                        self._save(state, step, metrics)
                    if ends:
                        break
                    if stopping:
                        self.checkpoints.wait()
                        raise Interrupted(
                            f"interrupted after step {step}, which is saved: the same command goes on "
                            "from there",
                            stop[0],
                        )
            self.checkpoints.wait()
            if (step, split) not in {(r["step"], r["split"]) for r in self._writer.records}:
                self._evaluate(state, step)  # nothing was left to train, but this split is new
        finally:
            self._progress.close()
            self._writer.close()
        return self._writer.records

    def _read_metrics(self, but: int = 0) -> None:
        """Reads the metrics of all calls but the last `but`. On a GPU those before are there: it does not wait."""
        while len(self._unread) > but:
            step, on_device = self._unread.popleft()
            with TraceAnnotation(STEP):
                values = {k: np.asarray(v.addressable_data(0)) for k, v in on_device.items()}
            count, now = len(values["loss"]), time.perf_counter()
            spent, self._read_at = now - self._read_at, now
            for number in range(count):
                step += 1
                self._seconds.append(spent / count)
                self._note(step, {k: float(v[number]) for k, v in values.items()})

    def _note(self, step: int, values: dict[str, float]) -> None:
        """Adds a step to the record that is growing, and writes it when it is due."""
        if not math.isfinite(values["loss"]):
            raise DivergedError(self._diverged(f"the loss is {values['loss']}", step))
        train, plan = self.config.train, self.plan
        self._count_updates(step, values)
        self._window.append(values)
        record = mean(self._window)
        record["images_per_second"] = len(self._window) * train.batch_size / sum(self._seconds)
        self._progress.advance(record)
        if step % train.log_every == 0 or step == plan.total_steps:
            self._write_window(step)

    def _count_updates(self, step: int, values: dict[str, float]) -> None:
        """Counts the updates made, which are fewer than the steps where float16 skips some."""
        skipped = "skipped" in values and values["skipped"] > 0
        self._updates += not skipped
        stuck = skipped and values["loss_scale"] <= loss_scale.LEAST
        self._overflows = self._overflows + 1 if stuck else 0
        if self._overflows == loss_scale.PATIENCE:
            what = (
                f"the gradient overflowed {loss_scale.PATIENCE} times in a row at the least loss scale, "
                f"{loss_scale.LEAST:g} (model.dtype='bfloat16' needs none),"
            )
            raise DivergedError(self._diverged(what, step))

    def _write_window(self, step: int) -> None:
        """Writes the record of the steps since the last, if there were any."""
        if self._window:
            self._write_record(step)

    @partial(annotate_function, name=RECORDS)
    def _write_record(self, step: int) -> None:
        record, size = mean(self._window), self.config.train.batch_size
        record["images_per_second"] = len(self._window) * size / sum(self._seconds)
        record["learning_rate"] = float(self.learning_rate(max(0, self._updates - 1)))
        self._writer.write(step, step / self.plan.steps_per_epoch, "train", record)
        self._progress.record(step, "train", record)
        self._window.clear()
        self._seconds.clear()

    @partial(annotate_function, name=EVALUATION)
    def _recalibrated(self, state: TrainState) -> TrainState:
        """Measures the batch statistics of the averaged weights: always on the first batches of the run."""
        began = time.perf_counter()
        count = min(self.config.average.recalibrate, self.plan.total_steps)
        calls = self.train_feed.training(0, count)
        found = self.recalibrate(state.average, self.train_feed.data, calls, state.step)
        self._read_at += time.perf_counter() - began
        return dataclasses.replace(state, average={**state.average, "batch_stats": found})

    @partial(annotate_function, name=EVALUATION)
    def _evaluate(self, state: TrainState, step: int) -> dict[str, float]:
        began, split = time.perf_counter(), self.config.data.eval_split
        batches = self.eval_feed.evaluation(self.plan.eval_batch_size)
        metrics = evaluate(self.eval_step, state, self.eval_feed.data, batches)
        if not math.isfinite(metrics["loss"]):
            raise DivergedError(self._diverged("the evaluation's loss is not finite", step))
        self._writer.write(step, step / self.plan.steps_per_epoch, split, metrics)
        self._progress.record(step, split, metrics)
        self._read_at += time.perf_counter() - began
        return metrics

    def _has_stalled(self) -> bool:
        train, split = self.config.train, self.config.data.eval_split
        records = (
            r for r in self._writer.records if r["split"] == split and r["step"] >= self.judged_from
        )
        return has_stalled([score(r, train.judged_by) for r in records], train.early_stopping)

    @partial(annotate_function, name=CHECKPOINT)
    def _save(self, state: TrainState, step: int, metrics: dict | None) -> None:
        began = time.perf_counter()
        run = {
            "config": dataclasses.asdict(self.config),
            "class_names": list(self.source.class_names),
            "num_classes": self.plan.num_classes,
            "num_examples": len(self.source),
            "parts": self.parts,
            "teacher": self.learnt_from,
            "bad_images": {str(k): v for k, v in self.train_feed.bad.items()},
        }
        try:
            self.checkpoints.save(step, state, run, metrics)
        except DivergedError as error:
            raise DivergedError(self._diverged(str(error), step)) from error
        self._read_at += time.perf_counter() - began

    def _diverged(self, what: str, step: int) -> str:
        saved, config = self.checkpoints.steps(), self.config
        last = (
            f"checkpoint {saved[-1]} in {self.folder} is the last good one"
            if saved
            else "none was saved"
        )
        return (
            f"{what} at step {step}; {last}. Usual causes: optimizer.learning_rate="
            f"{config.optimizer.learning_rate} is too high, schedule.warmup="
            f"{config.schedule.warmup} too short, model.dtype={config.model.dtype} too narrow"
        )


def _timed(feed: Iterable) -> Iterator:
    """Yields from a feed, each wait a span of the profile."""
    feed, nothing = iter(feed), object()
    while True:
        with TraceAnnotation(INPUT):
            batches = next(feed, nothing)
        if batches is nothing:
            return
        yield batches


def mean(window: list[dict[str, float]]) -> dict[str, float]:
    """Averages records key by key."""
    return {k: sum(values[k] for values in window) / len(window) for k in window[0]}
