"""Training from a configuration to a finished run, in the order in which it happens."""

import dataclasses
import itertools
import logging
import pathlib
import time
from typing import Any

import jax

from flax_resnet.config import Config
from flax_resnet.config.plan import (
    Plan,
    planned_drop_factor,
    planned_learning_rate,
    planned_optimizer,
)
from flax_resnet.config.plan import plan as make_plan
from flax_resnet.data.records import Source
from flax_resnet.data.sampling import Order
from flax_resnet.data.sources.open import open_source
from flax_resnet.errors import ConfigError, DataError, WorkdirError
from flax_resnet.optim.metrics import has_stalled, judged, score
from flax_resnet.training import sharding
from flax_resnet.training.plan_text import describe
from flax_resnet.training.pretrained import adopted, open_pretrained, read_pretrained, warm_started
from flax_resnet.training.runs.checkpoint import Checkpoints, Restored
from flax_resnet.training.runs.folder import (
    METRICS,
    SUMMARY,
    claim,
    read_config,
    read_records,
    store_config,
)
from flax_resnet.training.state import abstract_state, build_model, check_training, initial_state
from flax_resnet.training.step.bn_statistics import make_recalibration
from flax_resnet.training.step.eval_step import make_eval_step
from flax_resnet.training.step.microbatches import choose, parts_of
from flax_resnet.training.step.train_step import compiled_ahead, make_train_step
from flax_resnet.training.teacher import checksum, located, open_teacher
from flax_resnet.training.whitening import measured, whitened, whitens

log = logging.getLogger("flax_resnet")

PRECISIONS = {"default": None, "tf32": "tensorfloat32", "float32": "float32"}


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended: accuracies are shares of the evaluation split, 0 to 1; best by `train.judged_by`."""

    step: int
    final_top1: float
    best_top1: float
    best_step: int


def train(
    config: Config,
    run_dir: str | pathlib.Path | None,
    *,
    resume: str = "auto",
    dry_run: bool = False,
    train_source: Source | None = None,
    eval_source: Source | None = None,
) -> Result | None:
    """Trains, or goes on training, or finds that there is nothing left to do.

    Args:
      config: what to train.
      run_dir: the run folder, made where absent (None for a dry run only). Afterwards it holds
        checkpoints/, config.json, metrics.jsonl, TensorBoard event files and summary.txt.
      resume: "auto" or "force"; see `claim`.
      dry_run: show the plan and stop; nothing is written.
      train_source: examples to train on, such as `data.arrays.ArraySource`, instead of the configured ones.
      eval_source: the same for evaluation.

    Returns:
      The result, or None after a dry run.

    Raises:
      UserError: see errors.py. Whatever was saved stays as it was.
      Interrupted: SIGINT or SIGTERM came; the state was saved.
    """
    began = time.perf_counter()
    run_dir = pathlib.Path(run_dir).expanduser().resolve() if run_dir else None
    config = located(config)
    jax.config.update("jax_default_matmul_precision", PRECISIONS[config.train.matmul_precision])

    # What can be refused is refused before anything is compiled or written: network, data, folder.
    before = read_config(run_dir) if run_dir is not None else None
    if config.model.name:
        build_model(config, config.model.num_classes or 1)
    given = config.data.source == "arrays"
    if any((source is not None) != given for source in (train_source, eval_source)):
        raise ConfigError(
            f"data.source={config.data.source!r}: with 'arrays', and only then, train_source and eval_source "
            "are given to train(), both"
        )
    if not given:
        train_source = open_source(config.data, train=True)
        eval_source = open_source(config.data, train=False)
    if train_source.class_names != eval_source.class_names:
        raise DataError("the classes to evaluate on are not those to train on, or in another order")
    weights = open_pretrained(config) if config.model.pretrained and not before else None
    if before or weights:
        config = adopted(config, before or weights.about)
    stream = make_order(train_source, config)
    resident = config.keeps_resident(stream.epoch_size, config.data.train_crop)
    plan = make_plan(
        config,
        num_train=stream.epoch_size,
        num_eval=len(eval_source),
        num_classes=len(train_source.class_names),
    )
    mesh = sharding.make_mesh()
    sharding.check_batch(mesh, config.train.batch_size, "train.batch_size")
    parts = parts_of(config, mesh)
    rounded = sharding.round_up(mesh, plan.eval_batch_size)  # evaluation pads, so any size will do
    plan = dataclasses.replace(plan, eval_batch_size=rounded)

    model = build_model(config, plan.num_classes)
    teacher, taught = None, ()
    if config.distill.teacher and not before:  # of a run that may be finished, later
        teacher, *taught = open_teacher(config, plan.num_classes, train_source.class_names)
    optimizer = planned_optimizer(config, plan)
    shapes = abstract_state(config, model, optimizer, mesh)
    for size in {size for _, size in plan.sizes}:
        check_training(config, model, shapes, size)
    warm = read_pretrained(config, model, weights) if weights else None
    if dry_run:
        log.info("%s", describe(config, plan, shapes, resident=resident))
        return None
    stored = claim(run_dir, config, resume=resume)

    checkpoints = Checkpoints(run_dir, judged_by=config.train.judged_by)
    try:
        restored = checkpoints.restore_last_good(shapes)
        changed = restored and _data_changes(restored, train_source)
        if changed and resume != "force":
            raise WorkdirError(
                f"workdir {run_dir} was trained on other data ({changed}): name another workdir, or go on "
                "with --resume=force"
            )
        judged_from = restored.step + 1 if restored and resume == "force" else 0
        finished = _finished(restored, run_dir, plan, config, judged_from)
        if finished is not None:
            return finished
        if config.distill.teacher and not teacher:
            teacher, *taught = open_teacher(config, plan.num_classes, train_source.class_names)
        learnt_from = checksum(teacher, taught) if teacher else None
        if restored and restored.run.get("teacher") != learnt_from and resume != "force":
            raise WorkdirError(
                f"distill.teacher={config.distill.teacher!r}: its weights are not those that workdir {run_dir} has "
                "learnt from: bring these back, name another workdir, or go on with --resume=force"
            )
        store_config(run_dir, config)  # only now: a refused command changes nothing
        log.info("%s", describe(config, plan, shapes, resident=resident))
        if restored is None:
            start, state, bad = 0, initial_state(config, model, optimizer, mesh), {}
            if config.model.pretrained:
                warm = warm or read_pretrained(config, model, open_pretrained(config))
                state = warm_started(state, warm, mesh)
            if stored is not None:
                log.info("no checkpoint yet: starting from the beginning")
        else:
            start, state = restored.step, restored.state
            # Of other data, or of data that may be others, the list says nothing.
            known = {} if resume == "force" else restored.run["bad_images"]
            bad = {int(k): v for k, v in known.items()}
            kept = None if resume == "force" else restored.run["parts"]
            parts = parts or kept  # what was chosen, so that the resumption is exact
            log.info(
                "going on from checkpoint %d (epoch %.3g)", start, start / plan.steps_per_epoch
            )
        # Not before here: these import TensorFlow, which takes seconds.
        from flax_resnet.training.input.feeds import make_feed
        from flax_resnet.training.trainer import Run

        crops, drop = (
            (config.data.train_crop, config.data.eval_crop),
            planned_drop_factor(config, plan),
        )
        train_feed = make_feed(
            train_source, stream, config, mesh, crop=crops[0], sizes=plan.sizes, bad=bad
        )
        if restored is None and whitens(model) and not config.model.pretrained:
            state = whitened(state, measured(train_feed, config, mesh))
        whole = Order(len(eval_source), seed=0)
        eval_feed = make_feed(eval_source, whole, config.evaluating(), mesh, crop=crops[1])

        def step_in(parts: int) -> Any:
            fetch = train_feed.training_batch
            return make_train_step(
                config,
                model,
                optimizer,
                mesh,
                fetch,
                parts=parts,
                teacher=teacher,
                drop=drop,
                total_steps=plan.total_steps,
            )

        calls = train_feed.calls(start, plan.total_steps)
        if parts is None and calls:
            largest = max(calls, key=lambda call: sum(leaf.size for leaf in jax.tree.leaves(call)))
            parts = choose(
                config, mesh, lambda n: step_in(n).lower(shapes, train_feed.data, largest, *taught)
            )
        taught = tuple(jax.device_put(taught, sharding.replicated(mesh)))
        train_step = step_in(parts or 1)
        if len(calls) > 1:
            log.info("compiling for %d sizes of image or numbers of steps a call", len(calls))
            train_step = compiled_ahead(train_step, shapes, train_feed.data, calls, *taught)
        run = Run(
            config=config,
            plan=plan,
            folder=run_dir,
            checkpoints=checkpoints,
            judged_from=judged_from,
            train_step=train_step,
            taught=taught,
            parts=parts,
            learnt_from=learnt_from,
            eval_step=make_eval_step(config, model, mesh, eval_feed.evaluation_batch),
            recalibrate=make_recalibration(
                config, model, mesh, train_feed.training_batch, parts=parts, drop=drop
            )
            if config.average.recalibrate
            else None,
            train_feed=train_feed,
            eval_feed=eval_feed,
            learning_rate=planned_learning_rate(config, plan),
            source=train_source,
        )
        return _report(run.go(state, start), config, plan, run_dir, start, began)
    finally:
        checkpoints.close()


def make_order(source: Source, config: Config) -> Order:
    """Returns the order in which a configuration goes through the training examples."""
    data, size = config.data, len(source)
    kept = max(1, round(data.fraction * size))
    return Order(
        size,
        config.train.seed,
        kept=min(kept, data.limit) if data.limit else kept,
        subset_seed=data.split_seed,
        repeats=data.repeats,
        labels=source.labels() if data.balanced else None,
    )


def _finished(
    restored: Restored | None,
    run_dir: pathlib.Path,
    plan: Plan,
    config: Config,
    judged_from: int,
) -> Result | None:
    """Says so, and returns the result, where the last checkpoint is the end of the plan, or an early one.

    Evaluations before the step `judged_from` do not count for an early end.
    """
    if restored is None:
        return None
    split = config.data.eval_split
    records = [r for r in read_records(run_dir) if r["step"] <= restored.step]
    scores = [
        score(r, config.train.judged_by)
        for r in records
        if r["split"] == split and r["step"] >= judged_from
    ]
    if restored.step < plan.total_steps and not has_stalled(scores, config.train.early_stopping):
        return None
    if restored.step > plan.total_steps:
        raise WorkdirError(
            f"train.epochs={config.train.epochs}, train.steps={config.train.steps}: workdir {run_dir} has "
            f"already trained {restored.step / plan.steps_per_epoch:.3g} epochs; allowed: as many or more"
        )
    result = _result(records, config, restored.step)
    if result is not None:
        stopped = restored.step < plan.total_steps
        log.info(
            "%s is finished: %.3g epochs%s, final top-1 %.2f %% on %s (%s)",
            run_dir,
            restored.step / plan.steps_per_epoch,
            ", stopped early" if stopped else "",
            100 * result.final_top1,
            split,
            "a larger train.early_stopping goes on"
            if stopped
            else f"{'a larger train.steps extends' if config.train.steps else 'more epochs extend'} it",
        )
    return result


def _data_changes(restored: Restored, source: Source) -> str:
    """Says how the data differ from what the run was trained on; empty where they do not."""
    was, now = tuple(restored.run["class_names"]), source.class_names
    if was != now:
        odd = next(pair for pair in itertools.zip_longest(was, now) if pair[0] != pair[1])
        return f"{len(was)} classes -> {len(now)}, the first to differ: {odd[0]} -> {odd[1]}"
    if restored.run["num_examples"] != len(source):
        return f"images: {restored.run['num_examples']:,} -> {len(source):,}"
    return ""


def _result(records: list[dict], config: Config, step: int) -> Result | None:
    evaluated = {r["step"]: r for r in records if r["split"] == config.data.eval_split}
    if step not in evaluated:
        return None
    best = max(evaluated, key=lambda s: score(evaluated[s], config.train.judged_by))
    return Result(step, judged(evaluated[step]), judged(evaluated[best]), best)


def _report(
    records: list[dict], config: Config, plan: Plan, run_dir: pathlib.Path, start: int, began: float
) -> Result:
    """Writes summary.txt and shows it."""
    from flax_resnet.training.runs.writers import clock

    train, end = config.train, max(r["step"] for r in records)
    result = _result(records, config, end)
    early = (
        f", stopped early: {train.early_stopping} evaluations without a better {train.judged_by}"
        if end < plan.total_steps
        else ""
    )
    by = "" if train.judged_by == "top1" else f", by {train.judged_by}"
    summary = (
        f"final top-1 {result.final_top1:.2%} on {config.data.eval_split} "
        f"({plan.num_eval} images) after {end / plan.steps_per_epoch:.4g} epochs{early}; "
        f"best {result.best_top1:.2%} at step {result.best_step}{by}\n"
        f"time {clock(time.perf_counter() - began)}, of which this start trained "
        f"{end - start} steps\n"
        f"checkpoints {run_dir / 'checkpoints'}\n"
        f"records     {run_dir / METRICS}; TensorBoard: tensorboard --logdir {run_dir}\n"
        f'in Python   flax_resnet.load("{run_dir}").predict(images)\n'
    )
    (run_dir / SUMMARY).write_text(summary)
    log.info("%s", summary.rstrip())
    return result
