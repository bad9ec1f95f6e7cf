"""The compiled functions of a run."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax

from flax_resnet.config.plan import planned_drop_factor
from flax_resnet.training import sharding
from flax_resnet.training.experiment import Experiment
from flax_resnet.training.input.feeds import Feed
from flax_resnet.training.microbatch_size import choose_microbatches, microbatches_of
from flax_resnet.training.step.bn_statistics import make_statistics_measurement
from flax_resnet.training.step.eval_step import EvalStep, make_eval_step
from flax_resnet.training.step.train_step import TrainStep, compiled_ahead, make_train_step
from flax_resnet.training.teacher import Teacher

log = logging.getLogger("flax_resnet")


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions of a run.

    Attributes:
      train_step: the updates of a call.
      eval_step: the sums of an evaluation batch.
      measure_statistics: as `make_statistics_measurement` makes it, or None.
      microbatches: into how many a batch is divided.
      data: of the training step: the feed's, and the teacher's variables.
    """

    train_step: TrainStep
    eval_step: EvalStep
    measure_statistics: Callable[..., Any] | None
    microbatches: int
    data: dict[str, Any]


def make_programs(
    experiment: Experiment,
    train_feed: Feed,
    eval_feed: Feed,
    *,
    start_step: int,
    microbatches: int | None,
    teacher: Teacher | None,
) -> Programs:
    """Return the compiled functions of a run; those of calls of several shapes are compiled here.

    Args:
      experiment: what is trained.
      train_feed: of the training split.
      eval_feed: of the evaluation split.
      start_step: from which step it is trained.
      microbatches: of the run that is resumed; None for what the configuration says, or as many as fit into memory.
      teacher: the teacher network, or None.

    Raises:
      ConfigError: not even the smallest microbatch fits into memory.
    """
    config, model, mesh = experiment.config, experiment.model, experiment.mesh
    drop = planned_drop_factor(config, experiment.plan)
    data = dict(train_feed.data)
    if teacher:
        data["teacher"] = jax.device_put(teacher.variables, sharding.replicated(mesh))

    def step_in(microbatches: int) -> Any:
        return make_train_step(
            config,
            model,
            experiment.optimizer,
            mesh,
            train_feed.training_batch,
            drop=drop,
            total_steps=experiment.plan.total_steps,
            microbatches=microbatches,
            teacher=teacher,
        )

    calls = train_feed.calls(start_step, experiment.plan.total_steps)
    arguments = (experiment.abstract_state, data)
    microbatches = microbatches_of(config, mesh) or microbatches
    if microbatches is None and calls:
        largest = max(calls, key=lambda call: sum(leaf.size for leaf in jax.tree.leaves(call)))
        microbatches = choose_microbatches(
            config, mesh, lambda count: step_in(count).lower(*arguments, largest)
        )
    microbatches = microbatches or 1
    train_step = step_in(microbatches)
    if len(calls) > 1:
        log.info("compiling for %d sizes of image or numbers of steps a call", len(calls))
        train_step = compiled_ahead(train_step, *arguments, calls)
    measure = make_statistics_measurement(
        config, model, mesh, train_feed.training_batch, microbatches=microbatches, drop=drop
    )
    return Programs(
        train_step,
        make_eval_step(config, model, mesh, eval_feed.evaluation_batch),
        measure if config.ema.bn_batches else None,
        microbatches,
        data,
    )
