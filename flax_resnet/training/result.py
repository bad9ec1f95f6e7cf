"""The result of a run, computed from its records."""

import dataclasses
import logging

import jax

from flax_resnet.config import Config
from flax_resnet.optim.evaluation_metrics import has_stalled, monitored, shown
from flax_resnet.training.experiment import Experiment
from flax_resnet.training.runs.folder import METRICS, RunFolder
from flax_resnet.training.runs.scores import Records, best_step, evaluations, scores
from flax_resnet.training.runs.time_account import TimeAccount
from flax_resnet.training.start import Start

log = logging.getLogger("flax_resnet")


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
      step: number of updates made.
      final_top1: top-1 accuracy on the evaluation split at the last step, 0 to 1.
      best_top1: top-1 accuracy at the best evaluation by `train.monitor`.
      best_step: the step of that evaluation.
    """

    step: int
    final_top1: float
    best_top1: float
    best_step: int


def result_of(records: Records, config: Config, step: int, scores_from: int = 0) -> Result | None:
    """Return the result of a run that ended at `step`, or None if that step was not evaluated.

    Args:
      records: the records of the run.
      config: the configuration.
      step: the last step.
      scores_from: ignore evaluations before this step.
    """
    evaluated = {r["step"]: r for r in evaluations(records, config, scores_from)}
    best = best_step(scores(records, config, scores_from))
    if step not in evaluated or best is None:
        return None
    return Result(step, monitored(evaluated[step]), monitored(evaluated[best]), best)


def has_stopped_early(records: Records, config: Config, scores_from: int) -> bool:
    """Return whether the last `train.early_stopping` evaluations brought no new best.

    Args:
      records: the records of the run.
      config: the configuration.
      scores_from: ignore evaluations before this step.
    """
    found = scores(records, config, scores_from)
    return has_stalled(list(found.values()), config.train.early_stopping)


def finished_result(experiment: Experiment, start: Start, folder: RunFolder) -> Result | None:
    """Return the result of a finished run, or None if training must resume.

    A run is finished if its last checkpoint is at the end of the plan, or if early stopping ended it.

    Args:
      experiment: the experiment.
      start: the last checkpoint, from which training would resume.
      folder: the run folder.
    """
    if start.judged_anew:
        return None
    config, plan = experiment.config, experiment.plan
    split, train = config.data.eval_split, config.train
    records = [r for r in folder.read_records() if r["step"] <= start.step]
    early = start.step < plan.total_steps
    if early and not has_stopped_early(records, config, start.scores_from):
        return None
    epochs = start.step / plan.steps_per_epoch
    key = "train.steps" if train.steps else "train.epochs"
    result = result_of(records, config, start.step, start.scores_from)
    if result is not None:
        longer = f"a larger {key} extends it"
        log.info(
            "%s is finished: %.3g epochs%s, final top-1 %.2f %% on %s (%s)",
            folder,
            epochs,
            ", stopped early" if early else "",
            100 * result.final_top1,
            split,
            "a larger train.early_stopping resumes it" if early else longer,
        )
    return result


def report(
    records: Records,
    experiment: Experiment,
    folder: RunFolder,
    start: Start,
    account: TimeAccount,
) -> Result:
    """Write summary.txt, print it, and return the result.

    Args:
      records: the records of the run.
      experiment: the experiment.
      folder: the run folder.
      start: the start of this process.
      account: the wall time of the run.
    """
    config, plan = experiment.config, experiment.plan
    train, end = config.train, max(r["step"] for r in records)
    result = result_of(records, config, end, start.scores_from)
    assert result is not None  # the last step is always evaluated
    early = (
        f", stopped early: {train.early_stopping} evaluations without a better {train.monitor}"
        if end < plan.total_steps
        else ""
    )
    evaluated = {r["step"]: r for r in evaluations(records, config)}
    best = monitored(evaluated[result.best_step], train.monitor)
    by = "" if train.monitor == "top1" else f", by {shown({train.monitor: best})}"
    summary = (
        f"final top-1 {result.final_top1:.2%} on {config.data.eval_split} "
        f"({plan.num_eval} images) after {end / plan.steps_per_epoch:.4g} epochs{early}; "
        f"best {result.best_top1:.2%} at step {result.best_step}{by}\n"
        f"time {account}\n"
        f"checkpoints {folder.path / 'checkpoints'}\n"
        f"records     {folder.path / METRICS}; TensorBoard: tensorboard --logdir {folder}\n"
        f'in Python   flax_resnet.load("{folder}").predict(images)\n'
    )
    if jax.process_index() == 0:
        folder.write_summary(summary)
    log.info("%s", summary.rstrip())
    return result
