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
from flax_resnet.training.out_of_memory import step_memory
from flax_resnet.training.step.bn_statistics import make_statistics_measurement
from flax_resnet.training.step.eval_step import EvalStep, make_eval_step
from flax_resnet.training.step.train_step import TrainStep, compiled_ahead, make_train_step
from flax_resnet.training.teacher import Teacher

log = logging.getLogger("flax_resnet")


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions of a run.

    Attributes:
      train_step: the function that computes the updates of a call.
      eval_step: the function that computes the sums of an evaluation batch.
      measure_statistics: the result of `make_statistics_measurement`, or None if `ema.bn_batches` is 0.
      microbatches: number of microbatches per batch.
      data: the training step's `data` argument: the feed's data, and the teacher's variables.
      compile_largest: a function that compiles the training step ahead of time, for the call with the most data.
    """

    train_step: TrainStep
    eval_step: EvalStep
    measure_statistics: Callable[..., Any] | None
    microbatches: int
    data: dict[str, Any]
    compile_largest: Callable[[], Any]


def make_programs(
    experiment: Experiment,
    train_feed: Feed,
    eval_feed: Feed,
    *,
    start_step: int,
    microbatches: int | None,
    teacher: Teacher | None,
) -> Programs:
    """Return the compiled functions of a run.

    If the calls of the training step have several shapes, the step is compiled for all of them here.

    Args:
      experiment: the experiment.
      train_feed: the feed of the training split.
      eval_feed: the feed of the evaluation split.
      start_step: the step from which training starts.
      microbatches: number of microbatches of a resumed run; used if `train.microbatch_size` is "auto". None: choose
        the number that fits into the available memory.
      teacher: the teacher network, or None.

    Raises:
      ConfigError: not even the smallest microbatch fits in memory.
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
            class_weights=experiment.plan.class_weights,
            microbatches=microbatches,
            teacher=teacher,
        )

    calls = train_feed.calls(start_step, experiment.plan.total_steps)
    arguments = (experiment.abstract_state, data)

    def largest_in(microbatches: int) -> Any:
        largest = max(calls, key=lambda call: sum(leaf.size for leaf in jax.tree.leaves(call)))
        return step_in(microbatches).lower(*arguments, largest)

    microbatches = microbatches_of(config, mesh, resumed=microbatches)
    if microbatches is None and calls:
        microbatches = choose_microbatches(config, mesh, largest_in)
    microbatches = microbatches or 1
    train_step = step_in(microbatches)

    def compile_largest() -> Any:
        return largest_in(microbatches).compile()

    if len(calls) > 1:
        log.info("compiling for %d sizes of image or numbers of steps a call", len(calls))
        with step_memory(config, mesh, experiment.abstract_state, compile_largest):
            train_step = compiled_ahead(train_step, *arguments, calls)
    measure = None
    if config.ema.bn_batches:
        measure = make_statistics_measurement(
            config, model, mesh, train_feed.training_batch, microbatches=microbatches, drop=drop
        )
    return Programs(
        train_step,
        make_eval_step(config, model, mesh, eval_feed.evaluation_batch),
        measure,
        microbatches,
        data,
        compile_largest,
    )
