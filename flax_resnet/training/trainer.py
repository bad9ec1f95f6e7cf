"""The training loop: updates, records, evaluations and checkpoints."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flax_resnet.data.sampling import EpochSampler
from flax_resnet.errors import DivergedError, Interrupted
from flax_resnet.optim.optimizer import updates_made
from flax_resnet.training import sharding
from flax_resnet.training.data_initialization import initialize_from_data
from flax_resnet.training.experiment import Experiment
from flax_resnet.training.input.feeds import Feed, make_feed
from flax_resnet.training.input.unreadable import all_unreadable
from flax_resnet.training.interrupt import Stop, Stopped, stop_requested, until_stopped
from flax_resnet.training.ledger import Ledger
from flax_resnet.training.observer import Observer
from flax_resnet.training.out_of_memory import evaluation_memory, step_memory
from flax_resnet.training.processes.exchange import gather
from flax_resnet.training.programs import Programs, make_programs
from flax_resnet.training.run_log import RunLog
from flax_resnet.training.runs.checkpoint import Checkpoints
from flax_resnet.training.runs.folder import RunFolder
from flax_resnet.training.runs.metadata import RunMetadata
from flax_resnet.training.runs.writers import Progress, record_writer
from flax_resnet.training.stages import CHECKPOINT, DISPATCH, EVALUATION, INPUT, OTHER, STEPPING
from flax_resnet.training.start import Start
from flax_resnet.training.state import TrainState, variables_by_prefix
from flax_resnet.training.step.eval_step import evaluate
from flax_resnet.training.step_metrics import StepMetrics
from flax_resnet.training.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains an experiment to the end of its plan; see `build_trainer`.

    Attributes:
      experiment: the experiment.
      programs: the compiled functions.
      train_feed: the feed of the training split.
      eval_feed: the feed of the evaluation split.
      folder: the run folder.
      checkpoints: the checkpoints of the run folder.
      teacher_checksum: the checksum of the teacher, or None.
      observers: what else receives records, evaluations and the end.
    """

    experiment: Experiment
    programs: Programs
    train_feed: Feed
    eval_feed: Feed
    folder: RunFolder
    checkpoints: Checkpoints
    teacher_checksum: int | None
    observers: Sequence[Observer]

    def run(self, start: Start, ledger: Ledger) -> list[dict[str, Any]]:
        """Train from `start` to the last step or an early stop, and return all records of the run.

        Args:
          start: the start of the run.
          ledger: the clock of this start.

        Raises:
          Interrupted: the process received a signal; the state was saved.
          UserError: data cannot be read, a file cannot be written, or training diverged; checkpoints stay valid.
        """
        config, plan, programs = self.experiment.config, self.experiment.plan, self.programs
        state, step = start.state, start.step
        updates = updates_made(state.opt_state)
        metrics = StepMetrics(updates, config.train, ledger, start.unrecorded)
        progress = Progress(plan.total_steps, step, config.train.monitor)
        writer = record_writer(self.folder, step)
        log = RunLog(self.experiment, self.observers, writer, progress, metrics, start.scores_from)
        ledger.switch(STEPPING)
        try:
            with stop_requested() as stop, self._explained():
                ends = False
                if start.replaces or (self._is_evaluated(step) and step not in log.scores()):
                    state, ends = self._settle(state, step, log, stop, replaces=start.replaces)
                calls = iter(()) if ends else self.train_feed.training(step, plan.total_steps)
                for call in _timed(calls, ledger):
                    with ledger.span(DISPATCH):
                        state, on_device = programs.train_step(state, programs.data, call)
                    if step == start.step:
                        for observer in self.observers:
                            observer.on_first_update()
                    ledger.step = step = metrics.add(step, on_device)
                    metrics.read(log.note)
                    if (
                        stop.requested()
                        or self._is_evaluated(step)
                        or step % plan.checkpoint_every == 0
                    ):
                        metrics.read(log.note, all_calls=True)
                        state, ends = self._settle(state, step, log, stop)
                        if ends:
                            break
                with ledger.span(CHECKPOINT):
                    self.checkpoints.wait()
                gather(None)  # a signal stops all of the processes or none
        finally:
            ledger.switch(OTHER)
            log.close()
        return log.records

    def _is_evaluated(self, step: int) -> bool:
        """Return whether the plan evaluates the state after `step` updates."""
        plan = self.experiment.plan
        return step == plan.total_steps or (step > 0 and step % plan.eval_every == 0)

    def _settle(
        self,
        state: TrainState,
        step: int,
        log: RunLog,
        stop: Stop,
        *,
        replaces: bool = False,
    ) -> tuple[TrainState, bool]:
        """Evaluate and save the state as planned.

        Args:
          state: the state.
          step: number of updates made.
          log: the log of the run.
          stop: tells whether a signal ends the run here.
          replaces: replace the checkpoint of this step; see `Start.replaces`.

        Returns:
          The state, with measured statistics, and whether training ends here.

        Raises:
          Interrupted: a signal was received, before or meanwhile. The state is saved at once, without a score; the
            resumed run evaluates it first.
        """
        ends, improves, ledger = False, False, log.metrics.ledger
        try:
            if stop.requested():
                raise Stopped
            measured = self._with_measured_statistics(state, ledger, stop)
            if self._is_evaluated(step):
                if step not in log.scores():
                    self._evaluate(measured, step, log, stop)
                improves = step == log.best_step()
                ends = step == self.experiment.plan.total_steps or log.has_stopped_early()
        except Stopped:
            if step not in self.checkpoints.steps():
                self._save(state, step, log, measured=False)
            with ledger.span(CHECKPOINT):
                self.checkpoints.wait()
            raise Interrupted(
                f"interrupted after step {step}, which is saved: run the same command again to resume"
            ) from None
        if ends:
            log.write(step)
        saves = ends or improves or step % self.experiment.plan.checkpoint_every == 0
        if replaces or (saves and step not in self.checkpoints.steps()):
            self._save(measured, step, log)
        return measured, ends

    def _with_measured_statistics(
        self, state: TrainState, ledger: Ledger, stop: Stop
    ) -> TrainState:
        """Measure the moving average's batch statistics, always on the first batches of the run."""
        if not self.programs.measure_statistics:
            return state
        with ledger.span(EVALUATION):
            count = min(self.experiment.config.ema.bn_batches, self.experiment.plan.total_steps)
            calls = until_stopped(self.train_feed.training(0, count), stop)
            batch_stats = self.programs.measure_statistics(
                state.ema, self.train_feed.data, calls, state.step
            )
        return dataclasses.replace(state, ema={**state.ema, "batch_stats": batch_stats})

    def _evaluate(self, state: TrainState, step: int, log: RunLog, stop: Stop) -> None:
        with log.metrics.ledger.span(EVALUATION):
            batches = self.eval_feed.evaluation(self.experiment.plan.eval_batch_size)
            variables = sharding.gathered(variables_by_prefix(state), self.experiment.mesh)
            with evaluation_memory(self.experiment.plan.eval_batch_size):
                values = evaluate(
                    self.programs.eval_step,
                    variables,
                    self.eval_feed.data,
                    until_stopped(batches, stop),
                )
            if not math.isfinite(values["loss"]):
                raise DivergedError(
                    f"not finite in the evaluation at step {step}",
                    key="loss",
                    value=values["loss"],
                )
            log.record(step, self.experiment.config.data.eval_split, values)
            for observer in self.observers:
                observer.on_evaluation(step, variables)

    def _save(self, state: TrainState, step: int, log: RunLog, *, measured: bool = True) -> None:
        splits = self.experiment.splits
        metadata = RunMetadata(
            config=dataclasses.asdict(self.experiment.config),
            class_names=splits.class_names,
            num_classes=self.experiment.plan.num_classes,
            num_examples=len(splits.train),
            fingerprint=self.experiment.fingerprint,
            microbatches=self.programs.microbatches,
            teacher_checksum=self.teacher_checksum,
            bad_images={
                str(index): found for index, found in all_unreadable(self.train_feed).items()
            },
            unrecorded=log.metrics.unrecorded,
            ema_measured=measured or not self.programs.measure_statistics,
        )
        with log.metrics.ledger.span(CHECKPOINT):
            try:
                self.checkpoints.save(step, state, metadata, best=log.best_step())
            except DivergedError as error:
                raise DivergedError(f"{error.problem} at step {step}", key=error.key) from error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Add the last good checkpoint and the usual cures to a DivergedError; explain a full memory."""
        its, compile_step = self.experiment, self.programs.compile_largest
        try:
            with step_memory(its.config, its.mesh, its.abstract_state, compile_step):
                yield
        except DivergedError as error:
            saved, config = self.checkpoints.steps(), self.experiment.config
            last = f"checkpoint {max(saved, default=0)} in {self.folder} is the last good one"
            usual = (
                f"decrease optimizer.learning_rate={config.optimizer.learning_rate}, increase "
                f"schedule.warmup={config.schedule.warmup}, or use a wider type than "
                f"model.dtype={config.model.dtype!r}"
            )
            raise DivergedError(
                f"{error.problem}; {last if saved else 'no checkpoint was saved'}",
                key=error.key,
                value=error.value,
                cure="; ".join(filter(None, (error.cure, usual))),
            ) from error


def _timed(calls: Iterable[Any], ledger: Ledger) -> Iterator[Any]:
    """Yield the calls of a feed, and count each wait for a call as input."""
    calls, nothing = iter(calls), object()
    while True:
        with ledger.span(INPUT):
            call = next(calls, nothing)
        if call is nothing:
            return
        yield call


def build_trainer(
    experiment: Experiment,
    start: Start,
    folder: RunFolder,
    checkpoints: Checkpoints,
    teacher: Teacher | None,
    observers: Sequence[Observer] = (),
) -> tuple[Trainer, Start]:
    """Open the feeds, make the compiled functions, and return the trainer and its start.

    Args:
      experiment: the experiment.
      start: the start of the run; a network that is initialized from data is initialized here.
      folder: the run folder.
      checkpoints: the checkpoints of the run folder.
      teacher: the teacher network, or None.
      observers: objects that receive every record.
    """
    config, splits, mesh = experiment.config, experiment.splits, experiment.mesh
    train_feed = make_feed(
        splits.train,
        splits.sampler,
        config,
        mesh,
        crop=config.data.train_crop,
        sizes=experiment.plan.sizes,
        bad=start.bad_images,
    )
    model: Any = experiment.model
    fresh = start.step == 0 and not config.model.pretrained
    if fresh and model.initializes_from_data:
        state = initialize_from_data(start.state, model, train_feed, config, mesh)
        start = dataclasses.replace(start, state=state)
    eval_feed = make_feed(
        splits.eval,
        EpochSampler(len(splits.eval), seed=0),
        config.evaluating(),
        mesh,
        crop=config.data.eval_crop,
    )
    programs = make_programs(
        experiment,
        train_feed,
        eval_feed,
        start_step=start.step,
        microbatches=start.microbatches,
        teacher=teacher,
    )
    checksum = teacher.checksum if teacher else None
    trainer = Trainer(
        experiment, programs, train_feed, eval_feed, folder, checkpoints, checksum, observers
    )
    return trainer, start
