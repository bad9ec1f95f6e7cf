"""The start of a run: from fresh weights, pretrained weights, or the last good checkpoint."""

import dataclasses
import itertools
from typing import Any

from flax_resnet.data import fingerprint
from flax_resnet.data.class_order import normal_form, same_classes
from flax_resnet.errors import WorkdirError
from flax_resnet.training.experiment import Experiment
from flax_resnet.training.pretrained import warm_started
from flax_resnet.training.runs.checkpoint import Checkpoints
from flax_resnet.training.runs.folder import ANOTHER_WORKDIR, RunFolder
from flax_resnet.training.runs.metadata import RunMetadata
from flax_resnet.training.state import TrainState, initial_state
from flax_resnet.training.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Start:
    """The start of a run.

    Attributes:
      step: number of updates made before this start.
      state: the training state.
      metadata: metadata of the checkpoint; None for a fresh start, or if --resume=force changed the data or the
        configuration after the checkpoint was saved.
      scores_from: evaluations before this step do not count, for early stopping and for the best checkpoint.
      judged_anew: whether the evaluation of this state was made before such a change, and must be repeated.
      ema_measured: `RunMetadata.ema_measured`.
    """

    step: int
    state: TrainState
    metadata: RunMetadata | None = None
    scores_from: int = 0
    judged_anew: bool = False
    ema_measured: bool = True

    @property
    def replaces(self) -> bool:
        """Whether the checkpoint of this step is replaced: it holds other metadata, or unmeasured statistics."""
        return not self.ema_measured or (self.metadata is None and self.step > 0)

    @property
    def bad_images(self) -> dict[int, int]:
        """{index of a known unreadable image: step at which it was found}."""
        known = self.metadata.bad_images if self.metadata else {}
        return {int(index): step for index, step in known.items()}

    @property
    def microbatches(self) -> int | None:
        """Number of microbatches of a resumed run; None to take it from the configuration."""
        return self.metadata.microbatches if self.metadata else None

    @property
    def unrecorded(self) -> dict[str, Any]:
        """The metrics of steps that have no record yet; see `StepMetrics`."""
        return self.metadata.unrecorded if self.metadata else {}


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
        state = warm_started(state, weights, experiment.optimizer, experiment.mesh)
    return Start(0, state)


def resumed_start(
    experiment: Experiment, checkpoints: Checkpoints, folder: RunFolder, *, forced: bool
) -> Start | None:
    """Return the start of a resumed run, or None if there is no checkpoint.

    After --resume=force, the configuration or the data may be others than before, until the next checkpoint. The
    checkpoint's metadata are discarded, and only the evaluations from its step on count.

    Args:
      experiment: the experiment.
      checkpoints: the checkpoints of the run.
      folder: the run folder.
      forced: set by --resume=force.

    Raises:
      CheckpointError: as `Checkpoints.restore_last_good`.
      WorkdirError: the run has been trained for longer than the plan, or on other data.
    """
    restored = checkpoints.restore_last_good(experiment.abstract_state, starts_over=forced)
    if restored is None:
        return None
    step, state, metadata = restored
    check_length(experiment, step, folder)
    scores_from = folder.scores_from()  # after the checkpoint, if later checkpoints were lost
    if forced or 0 < step <= scores_from:
        anew = forced or step < scores_from
        return Start(step, state, None, step, anew, metadata.ema_measured)
    check_data(metadata, experiment, folder)
    return Start(step, state, metadata, scores_from, ema_measured=metadata.ema_measured)


def check_length(experiment: Experiment, step: int, folder: RunFolder) -> None:
    """Raise WorkdirError if a run has been trained for longer than the plan."""
    train, plan = experiment.config.train, experiment.plan
    if step > plan.total_steps:
        epochs = step / plan.steps_per_epoch
        raise WorkdirError(
            f"{folder} has already trained {epochs:.3g} epochs, {step} steps",
            key="train.steps" if train.steps else "train.epochs",
            value=train.steps or train.epochs,
            allowed="as many or more",
        )


def check_data(metadata: RunMetadata, experiment: Experiment, folder: RunFolder) -> None:
    """Raise WorkdirError if a run was trained on other data than those of the experiment."""
    source = experiment.splits.train
    was, now = metadata.class_names, source.class_names
    change = ""
    if not same_classes(was, now):
        was, now = tuple(map(normal_form, was)), tuple(map(normal_form, now))
        odd = next(pair for pair in itertools.zip_longest(was, now) if pair[0] != pair[1])
        classes = f"{len(was)} classes -> {len(now)}"
        change = f"{classes}, the first to differ: {odd[0]} -> {odd[1]}"
    elif metadata.num_examples != len(source):
        change = f"images: {metadata.num_examples:,} -> {len(source):,}"
    elif found := fingerprint.change(metadata.fingerprint, experiment.fingerprint):
        change = f"images: the same number, other {found.aspect}"
        if found.example is not None:
            change += f"; the size of {source.describe(found.example)} differs, and no other"
    if change:
        raise WorkdirError(
            f"was trained on other data ({change})", key=folder.path, cure=ANOTHER_WORKDIR
        )


def check_teacher(start: Start, teacher: Teacher | None, name: str, folder: RunFolder) -> None:
    """Raise WorkdirError if a run was trained with another teacher; `name` is the configured teacher's name."""
    known = start.metadata
    if known and known.teacher_checksum != (teacher.checksum if teacher else None):
        raise WorkdirError(
            f"has other weights than the teacher that {folder} was trained with",
            key="distill.teacher",
            value=name,
            cure=f"restore that teacher, {ANOTHER_WORKDIR}",
        )
