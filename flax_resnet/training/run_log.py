"""The log of a run: its records, the progress bar, and the scores of its evaluations."""

from collections.abc import Sequence
from typing import Any

from flax_resnet.config.plan import planned_learning_rate
from flax_resnet.training.experiment import Experiment
from flax_resnet.training.observer import Observer
from flax_resnet.training.result import has_stopped_early
from flax_resnet.training.runs.scores import best_step, scores
from flax_resnet.training.runs.writers import Progress, Records
from flax_resnet.training.stages import RECORDS
from flax_resnet.training.step_metrics import StepMetrics


class RunLog:
    """Writes and prints the records of a run, and passes them to the observers."""

    def __init__(
        self,
        experiment: Experiment,
        observers: Sequence[Observer],
        writer: Records,
        progress: Progress,
        metrics: StepMetrics,
        scores_from: int,
    ):
        self.metrics = metrics
        self._experiment, self._observers = experiment, observers
        self._writer, self._progress = writer, progress
        self._scores_from = scores_from
        self._learning_rate = planned_learning_rate(experiment.config, experiment.plan)

    @property
    def records(self) -> list[dict[str, Any]]:
        """All records of the run."""
        return self._writer.records

    def scores(self) -> dict[int, float]:
        """Return {step: score} of the evaluations that count."""
        return scores(self.records, self._experiment.config, self._scores_from)

    def best_step(self) -> int | None:
        """Return the step of the best evaluation that counts, or None without one."""
        return best_step(self.scores())

    def has_stopped_early(self) -> bool:
        """Return whether `train.early_stopping` ends the run."""
        return has_stopped_early(self.records, self._experiment.config, self._scores_from)

    def record(self, step: int, split: str, values: dict[str, float]) -> None:
        """Write and print a record, and pass it to the observers."""
        epoch = step / self._experiment.plan.steps_per_epoch
        self._writer.write(step, epoch, split, values)
        self._progress.record(step, split, values)
        for observer in self._observers:
            observer.on_record(step, epoch, split, values)

    def note(self, step: int) -> None:
        """Advance the progress bar by a step, and write the training record when it is due."""
        self._progress.advance(self.metrics.means())
        config, plan = self._experiment.config, self._experiment.plan
        if step % config.train.log_every == 0 or step == plan.total_steps:
            self.write(step)

    def write(self, step: int) -> None:
        """Write a record of the training steps since the last record, if there are any."""
        if values := self.metrics.means():
            with self.metrics.ledger.span(RECORDS):
                rate = float(self._learning_rate(max(0, self.metrics.updates - 1)))
                self.record(step, "train", {**values, "learning_rate": rate})
                self.metrics.clear()

    def close(self) -> None:
        """Close the progress bar, and flush buffered records."""
        self._progress.close()
        self._writer.close()
