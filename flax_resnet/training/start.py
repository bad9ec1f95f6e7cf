"""The start of a run: from fresh weights, pretrained weights, or the last good checkpoint."""

import dataclasses
import itertools
from typing import Any

from flax_resnet.data.class_order import normal_form, same_classes
from flax_resnet.data.records import Source, names_checksum
from flax_resnet.errors import WorkdirError
from flax_resnet.training.experiment import Experiment
from flax_resnet.training.pretrained import warm_started
from flax_resnet.training.runs.checkpoint import Restored
from flax_resnet.training.runs.folder import ANOTHER_WORKDIR, RunFolder
from flax_resnet.training.state import TrainState, initial_state
from flax_resnet.training.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Start:
    """The start of a run.

    Attributes:
      step: number of updates made before this start.
      state: the training state.
      bad_images: {index of a known unreadable image: step at which it was found}.
      microbatches: number of microbatches of a resumed run; None to take it from the configuration.
      unrecorded: the metrics of steps that have no record yet; see `StepMetrics`.
      scores_from: evaluations before this step do not count, for early stopping and for the best checkpoint.
      changed: whether --resume=force changed the data or the configuration after the state was saved.
      judged_anew: whether an evaluation of this state was made before that change, and must be repeated.
      ema_measured: `RunMetadata.ema_measured`.
    """

    step: int
    state: TrainState
    bad_images: dict[int, int] = dataclasses.field(default_factory=dict)
    microbatches: int | None = None
    unrecorded: dict[str, Any] = dataclasses.field(default_factory=dict)
    scores_from: int = 0
    changed: bool = False
    judged_anew: bool = False
    ema_measured: bool = True


def fresh_start(experiment: Experiment, weights: dict[str, Any] | None) -> Start:
    """Return the start of a new run.

    Args:
      experiment: the experiment.
      weights: pretrained variables, as `read_pretrained` returns them, or None.
    """
    state = initial_state(
        experiment.config, experiment.model, experiment.optimizer, experiment.mesh
    )
    if weights is not None:
        state = warm_started(state, weights, experiment.mesh)
    return Start(0, state)


def resumed_start(restored: Restored, *, forced: bool, scores_from: int = 0) -> Start:
    """Return the start of a resumed run.

    After --resume=force, the configuration or the data may be others than before, until the next checkpoint. The
    checkpoint's list of unreadable images, its number of microbatches and its unrecorded metrics are discarded, and
    only the evaluations from its step on count.

    Args:
      restored: the last good checkpoint.
      forced: set by --resume=force.
      scores_from: `RunFolder.scores_from`, the step of the last forced resume. It is after the checkpoint if later
        checkpoints were lost.
    """
    step, metadata = restored.step, restored.metadata
    if forced or 0 < step <= scores_from:
        return Start(
            step,
            restored.state,
            scores_from=step,
            changed=True,
            judged_anew=forced or step < scores_from,
            ema_measured=metadata.ema_measured,
        )
    return Start(
        step,
        restored.state,
        bad_images={int(index): step for index, step in metadata.bad_images.items()},
        microbatches=metadata.microbatches,
        unrecorded=metadata.unrecorded,
        scores_from=scores_from,
        ema_measured=metadata.ema_measured,
    )


def check_length(experiment: Experiment, restored: Restored, folder: RunFolder) -> None:
    """Raise WorkdirError if a run has been trained for longer than the plan."""
    train, plan = experiment.config.train, experiment.plan
    if restored.step > plan.total_steps:
        epochs = restored.step / plan.steps_per_epoch
        raise WorkdirError(
            f"{folder} has already trained {epochs:.3g} epochs, {restored.step} steps",
            key="train.steps" if train.steps else "train.epochs",
            value=train.steps or train.epochs,
            allowed="as many or more",
        )


def check_data(restored: Restored, source: Source, folder: RunFolder) -> None:
    """Raise WorkdirError if a run was trained on other data than `source`."""
    was, now = restored.metadata.class_names, source.class_names
    change = ""
    if not same_classes(was, now):
        was, now = tuple(map(normal_form, was)), tuple(map(normal_form, now))
        odd = next(pair for pair in itertools.zip_longest(was, now) if pair[0] != pair[1])
        classes = f"{len(was)} classes -> {len(now)}"
        change = f"{classes}, the first to differ: {odd[0]} -> {odd[1]}"
    elif restored.metadata.num_examples != len(source):
        change = f"images: {restored.metadata.num_examples:,} -> {len(source):,}"
    elif restored.metadata.names_checksum != names_checksum(source):
        change = "images: the same number, other names"
    if change:
        raise WorkdirError(
            f"was trained on other data ({change})", key=folder.path, cure=ANOTHER_WORKDIR
        )


def check_teacher(
    restored: Restored, teacher: Teacher | None, name: str, folder: RunFolder
) -> None:
    """Raise WorkdirError if a run was trained with another teacher; `name` is the configured teacher's name."""
    if restored.metadata.teacher_checksum != (teacher.checksum if teacher else None):
        raise WorkdirError(
            f"has other weights than the teacher that {folder} was trained with",
            key="distill.teacher",
            value=name,
            cure=f"restore that teacher, {ANOTHER_WORKDIR}",
        )
