"""Train in a process of its own, and print what must not depend on the number of devices, as JSON.

    python losses_worker.py '{"data": {...}, "train": {...}}' [--steps=20]

The argument holds sections of a configuration. The network trains for one step in float32, and then from the start
for `--steps` in float64, where another order of sums hardly changes the losses. The output is

    {"devices": 8, "float32": RESULT, "float64": RESULT}

with the result of `trained`. XLA_FLAGS and JAX_PLATFORMS of the environment choose the devices.
"""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp

from flax_resnet.config import freeze
from flax_resnet.config.plan import planned_optimizer
from flax_resnet.data.sampling import EpochSampler
from flax_resnet.training import sharding
from flax_resnet.training.experiment import Experiment, build_experiment, open_splits
from flax_resnet.training.input.feeds import make_feed
from flax_resnet.training.programs import make_programs
from flax_resnet.training.state import abstract_state, initial_state, variables_by_prefix
from flax_resnet.training.step.eval_step import total


def in_float64(experiment: Experiment) -> Experiment:
    """Return the experiment with a network that computes in float64."""
    jax.config.update("jax_enable_x64", True)
    config, model = experiment.config, experiment.model.clone(dtype=jnp.dtype("float64"))
    optimizer = planned_optimizer(config, experiment.plan, model)
    shapes = abstract_state(config, model, optimizer, experiment.mesh)
    return dataclasses.replace(experiment, model=model, optimizer=optimizer, abstract_state=shapes)


def trained(experiment: Experiment, steps: int, *, evaluates: bool) -> dict:
    """Train for some steps, and evaluate if asked to.

    Returns:
      "indices": the examples of each step; "losses": the loss of each step before its update; "evaluation": the
      sums over the evaluation split, such as the number of images whose class is right.
    """
    config, splits, mesh = experiment.config, experiment.splits, experiment.mesh
    crops, plan = (config.data.train_crop, config.data.eval_crop), experiment.plan
    train_feed = make_feed(splits.train, splits.sampler, config, mesh, crop=crops[0])
    order = EpochSampler(len(splits.eval), seed=0)
    eval_feed = make_feed(splits.eval, order, config.evaluating(), mesh, crop=crops[1])
    programs = make_programs(
        experiment, train_feed, eval_feed, start_step=0, microbatches=None, teacher=None
    )
    read_indices = jax.jit(
        lambda data, call: train_feed.training_batch(data, call)["index"],
        out_shardings=sharding.replicated(mesh),
    )
    state = initial_state(config, experiment.model, experiment.optimizer, mesh)
    indices, losses = [], []
    for call in train_feed.training(0, steps):
        indices.append(read_indices(train_feed.data, call).tolist())
        state, metrics = programs.train_step(state, programs.data, call)
        losses.append(float(metrics["loss"]))
    variables = sharding.gathered(variables_by_prefix(state), mesh)
    batches = eval_feed.evaluation(plan.eval_batch_size) if evaluates else ()
    sums = total(programs.eval_step, variables, eval_feed.data, batches) or {}
    evaluation = {
        f"{prefix}{name}": float(value)
        for prefix, of_prefix in sums.items()
        for name, value in of_prefix.items()
        if value.ndim == 0
    }
    return {"indices": indices, "losses": losses, "evaluation": evaluation}


def main() -> None:
    """Parse the arguments, train, and print the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sections", type=json.loads)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    config = freeze(args.sections)
    experiment = build_experiment(config, open_splits(config))
    found = {"devices": jax.device_count(), "float32": trained(experiment, 1, evaluates=False)}
    found["float64"] = trained(in_float64(experiment), args.steps, evaluates=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
