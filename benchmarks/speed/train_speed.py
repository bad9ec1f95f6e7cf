"""Compare training end to end with the compiled step alone, and show where the time goes.

python -m benchmarks.speed.train_speed --config configs/resnet18.py:cifar10
    --steps 40 --rounds 3 --profile /tmp/profile --output speed.json

--config.KEY=VALUE and --data_dir are those of `python -m flax_resnet.main`. Each round makes two measurements:

1. End to end: the loop of `flax_resnet.main` trains for --steps updates in a temporary folder, on the configured
   data. At the end it evaluates and saves a checkpoint.
2. Step only: the compiled step makes as many updates on one batch that is already on the device.

Results are medians over the rounds. The first --warmup updates are not measured, because one of them compiles. The
time of each stage of the loop is read from a profile.

With --profile, one more run records every operation, for Perfetto (ui.perfetto.dev) or TensorBoard. This run is not
measured. The stages are spans of the thread `python`.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from benchmarks.arguments import folder, output
from benchmarks.record import write_record
from flax_resnet.cli import app, config_flag
from flax_resnet.config import Config
from flax_resnet.config.plan import plan as make_plan
from flax_resnet.config.plan import planned_optimizer
from flax_resnet.data.open import open_source
from flax_resnet.errors import ConfigError
from flax_resnet.optim.schedules import Schedule
from flax_resnet.training import sharding
from flax_resnet.training.experiment import make_sampler
from flax_resnet.training.microbatch_size import microbatches_of
from flax_resnet.training.stages import CHECKPOINT, EVALUATION, STAGES, STEP
from flax_resnet.training.state import build_model, initial_state
from flax_resnet.training.step.train_step import make_train_step
from flax_resnet.training.train import train

WHAT = {
    "input": "wait for a batch, and place it on the device",
    "dispatch": "dispatch the step to the device; on a CPU, run the step",
    "step": "wait for the device's results",
    "records": "write records",
    "evaluation": "evaluate, including compilation",
    "checkpoint": "save a checkpoint",
}


class Span(NamedTuple):
    """The span of one stage of the loop; times are in nanoseconds of the profile's clock."""

    name: str
    start: float
    end: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` excludes the program's name."""
    return app.run("benchmarks.speed.train_speed", __doc__, _define, _measure, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    config_flag.define(values, argv)
    app.define_common(values)
    flags.DEFINE_integer(
        "steps", 40, "updates per measurement, including --warmup", flag_values=values
    )
    flags.DEFINE_integer(
        "warmup",
        4,
        "updates to run before the measurement starts",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "rounds", 3, "measurements of each kind", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string("profile", "", "folder to write a detailed profile to", flag_values=values)
    flags.DEFINE_string("output", "", "file for the result as JSON", flag_values=values)


def _measure(values: flags.FlagValues) -> None:
    config = shortened(config_flag.frozen_config(values), app.flag(values, "steps"))
    skipped = warm_calls(config, app.flag(values, "warmup"))
    kept, record = _place(values, "profile", folder), _place(values, "output", output)
    rounds = app.flag(values, "rounds")
    app.set_up_jax(app.flag(values, "compilation_cache"))
    alone, turns = step_alone(config), []
    with tempfile.TemporaryDirectory() as scratch:
        place = pathlib.Path(scratch)
        for number in range(rounds):
            spans = profiled(config, place / str(number), place / f"profile_{number}")
            turns.append({**measured(spans, config, skipped), "step_only": alone()})
        if kept:
            profiled(config, place / str(rounds), pathlib.Path(kept), detailed=True)
    found = medians(turns, config)
    print(table(found))
    if kept:
        print(f"\nthe profile is in {kept}: open it in ui.perfetto.dev or TensorBoard")
    write_record(record, found)


def _place(values: flags.FlagValues, name: str, read: Callable[[str], str | pathlib.Path]) -> str:
    """Return the path that a flag holds, checked by `read`, a function of benchmarks.arguments; "" for none."""
    text = app.flag(values, name)
    try:
        return text and str(read(text))
    except argparse.ArgumentTypeError as error:
        allowed = str(error).rpartition(": must be ")[2]
        raise ConfigError(key=f"--{name}", value=text, allowed=allowed) from None


def shortened(config: Config, steps: int) -> Config:
    """Return the configuration with `steps` updates, a constant learning rate, and one evaluation at the end.

    Raises:
      ConfigError: the configuration uses a setting that `step_alone` does not support.
    """
    auto = "auto" if config.train.microbatch_size == "auto" else ""
    for key, value, allowed in (
        ("distill.teacher", config.distill.teacher, "''"),
        ("model.pretrained", config.model.pretrained, "''"),
        ("data.progressive", config.data.progressive, "()"),
        ("train.microbatch_size", auto, "'whole', or a number of images"),
    ):
        if value:
            raise ConfigError(
                "is not supported by this benchmark", key=key, value=value, allowed=allowed
            )
    section = dataclasses.replace(
        config.train, steps=steps, early_stopping=0, eval_every=1e6, checkpoint_every=1e6
    )
    constant = Schedule(name="constant")
    optimizer = dataclasses.replace(config.optimizer, unfreeze_at=())
    return dataclasses.replace(config, train=section, schedule=constant, optimizer=optimizer)


def warm_calls(config: Config, warmup: int) -> int:
    """Return the number of warm-up calls: `warmup` updates, rounded up to calls of `train.steps_per_call` updates.

    Raises:
      ConfigError: no call would be left to measure.
    """
    calls, per_call = -(-warmup // config.train.steps_per_call), config.train.steps_per_call
    if calls * per_call >= config.train.steps:
        raise ConfigError(
            key="--steps",
            value=config.train.steps,
            allowed=f"more than the {calls * per_call} updates of the warm-up (--warmup)",
        )
    return calls


def step_alone(config: Config) -> Callable[[], float]:
    """Return a function that measures the images per second of the compiled step alone."""
    from flax_resnet.training.input.feeds import make_feed

    source, mesh = open_source(config.data, train=True), sharding.make_mesh()
    order, classes = make_sampler(source, config), len(source.class_names)
    plan = make_plan(config, num_train=order.epoch_size, num_eval=1, num_classes=classes)
    feed = make_feed(source, order, config, mesh, crop=config.data.train_crop, sizes=plan.sizes)
    model = build_model(config, classes)
    optimizer = planned_optimizer(config, plan, model)
    held = [initial_state(config, model, optimizer, mesh)]
    step = make_train_step(
        config, model, optimizer, mesh, total_steps=plan.total_steps,
        microbatches=microbatches_of(config, mesh),
    )  # fmt: skip
    size, per_call = config.train.batch_size, config.train.steps_per_call
    call = next(iter(feed.training(0, 1)))
    if per_call > 1:
        call = jax.tree.map(lambda leaf: leaf[0], call)
    batch = jax.tree.map(np.asarray, jax.jit(feed.training_batch)(feed.data, call))
    if per_call > 1:
        batch = jax.tree.map(lambda leaf: np.stack([leaf] * per_call), batch)
    steps = sharding.place(batch, mesh, steps=per_call > 1)

    def updates(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            held[0], metrics = step(held[0], {"seed": 0}, steps)
        jax.block_until_ready(metrics)
        return calls * per_call * size / (time.perf_counter() - began)

    def turn() -> float:
        updates(1)  # may compile, or allocate memory
        return updates(config.train.steps // per_call)

    return turn


def profiled(
    config: Config, workdir: pathlib.Path, place: pathlib.Path, *, detailed: bool = False
) -> list[Span]:
    """Train; return the spans of the loop's stages from the profile, in order.

    Args:
      config: the configuration.
      workdir: the run folder.
      place: folder of the profile.
      detailed: whether to record every operation, which slows training down.
    """
    options = jax.profiler.ProfileOptions()
    options.device_tracer_level = 1 if detailed else 0
    options.host_tracer_level = 2 if detailed else 1
    options.python_tracer_level = 0  # tracing Python calls would slow them down
    with jax.profiler.trace(place, profiler_options=options):
        train(config, workdir)
    newest = max(place.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    spans = [
        Span(event.name, event.start_ns, event.start_ns + event.duration_ns)
        for plane in jax.profiler.ProfileData.from_file(str(newest)).planes
        for line in plane.lines
        for event in line.events
        if event.name in STAGES
    ]
    return sorted(spans, key=lambda span: span.start)


def measured(spans: Sequence[Span], config: Config, skipped: int = 1) -> dict[str, float]:
    """Return the time of each stage, the time of all measured steps ("steps"), and their "images_per_second".

    Times are in seconds. "steps" excludes evaluations and checkpoints.

    Args:
      spans: the spans of the loop's stages, in order.
      config: the configuration.
      skipped: number of warm-up calls. The measurement starts when the results of the last one have arrived.
    """
    results = [span for span in spans if span.name == STEP]
    first, last, apart = results[skipped - 1].end, results[-1].end, (EVALUATION, CHECKPOINT)
    seconds = dict.fromkeys(STAGES, 0.0)
    for span in spans:
        if first <= span.start < last or span.name in apart:
            seconds[span.name] += (span.end - span.start) / 1e9
    between = sum(
        span.end - span.start for span in spans if span.name in apart and first <= span.start < last
    )
    elapsed = (last - first - between) / 1e9
    updates = config.train.steps - skipped * config.train.steps_per_call
    return {
        **seconds,
        "steps": elapsed,
        "images_per_second": updates * config.train.batch_size / elapsed,
    }


def medians(turns: Sequence[dict[str, float]], config: Config) -> dict[str, Any]:
    """Return medians over the turns.

    "images_per_second" holds the end-to-end rate and the rate of the step only, and "share" their ratio. "stages"
    holds the share of each stage in the time of all steps.
    """
    rates = {
        "end_to_end": statistics.median(turn["images_per_second"] for turn in turns),
        "step_only": statistics.median(turn["step_only"] for turn in turns),
    }
    within = [name for name in STAGES if name not in (EVALUATION, CHECKPOINT)]
    return {
        "network": config.model.name,
        "batch_size": config.train.batch_size,
        "steps": config.train.steps,
        "rounds": len(turns),
        "images_per_second": rates,
        "share": rates["end_to_end"] / rates["step_only"],
        "stages": {
            name: statistics.median(turn[name] / turn["steps"] for turn in turns) for name in within
        },
        "seconds": {
            name: statistics.median(turn[name] for turn in turns)
            for name in (EVALUATION, CHECKPOINT)
        },
    }


def table(found: dict[str, Any]) -> str:
    """Return the result as text."""
    rates, rounds = found["images_per_second"], found["rounds"]
    lines = [
        f"{found['network']}, batches of {found['batch_size']}, {found['steps']} steps; medians of {rounds} rounds",
        f"end to end  {rates['end_to_end']:10.1f} images/s",
        f"step only   {rates['step_only']:10.1f} images/s",
        f"share       {found['share']:10.3f}",
        "",
        "share of the time of all steps",
    ]
    rest = 1 - sum(found["stages"].values())
    stages = found["stages"] | {"rest": rest}
    what = WHAT | {"rest": "the rest of the loop"}
    lines += [f"{name:12}{share:10.3f}  {what[name]}" for name, share in stages.items()]
    lines += ["", "seconds, once at the end of the run"]
    lines += [f"{name:12}{value:10.2f}  {what[name]}" for name, value in found["seconds"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
