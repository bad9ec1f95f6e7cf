"""Training, from a configuration to a finished run, in the order of execution."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Any

from flax_resnet.config import Config, freeze
from flax_resnet.data.records import Source
from flax_resnet.errors import ConfigError
from flax_resnet.training.absolute_paths import with_absolute_paths
from flax_resnet.training.experiment import Experiment, build_experiment, open_same_splits
from flax_resnet.training.ledger import Ledger
from flax_resnet.training.matmul_precision import matmul_precision
from flax_resnet.training.observer import Observer
from flax_resnet.training.pretrained import adopted, open_pretrained, read_pretrained
from flax_resnet.training.processes.exchange import check_same, first, gather, in_turns
from flax_resnet.training.result import Result, finished_result, report
from flax_resnet.training.runs.checkpoint import Checkpoints
from flax_resnet.training.runs.folder import RunFolder
from flax_resnet.training.runs.load import is_run
from flax_resnet.training.runs.metadata import versions
from flax_resnet.training.runs.time_account import AccountWriter
from flax_resnet.training.start import Start, check_teacher, fresh_start, resumed_start
from flax_resnet.training.state import build_model
from flax_resnet.training.teacher import Teacher, open_teacher

log = logging.getLogger("flax_resnet")


def train(
    config: Config,
    workdir: str | pathlib.Path | None,
    *,
    resume: str = "auto",
    dry_run: bool = False,
    train_source: Source | None = None,
    eval_source: Source | None = None,
    observers: Sequence[Observer] = (),
    ledger: Ledger | None = None,
) -> Result | None:
    """Train a network, or resume its training. A finished run returns its result at once.

    Args:
      config: the configuration.
      workdir: the run folder, created if absent; None only for a dry run. Afterwards it holds checkpoints/,
        config.json, metrics.jsonl, TensorBoard event files and summary.txt.
      resume: "auto" or "force"; see `RunFolder.claim`.
      dry_run: print the plan and return; nothing is written.
      train_source: the training examples, such as an `ArraySource`; only with ``data.source='python'``.
      eval_source: the evaluation examples; only with ``data.source='python'``.
      observers: what else receives records, evaluations and the end. `log.trackers` needs those of
        `flax_resnet.cli.tracker_observer.tracked`.
      ledger: the clock of this start's wall time; None for one that begins now.

    Returns:
      The result, or None after a dry run.

    Raises:
      UserError: see errors.py. Saved files are unchanged.
      Interrupted: the process received SIGINT, SIGTERM or SIGUSR1; the state was saved.
    """
    ledger = ledger or Ledger()
    _check_arguments(config, workdir, dry_run, observers)
    config = with_absolute_paths(config)
    _check_same_command(config, resume=resume, dry_run=dry_run)
    folder = RunFolder.at(workdir or ".")  # a dry run writes nothing

    # Check everything that can be checked before anything is compiled or written.
    stored = _stored_config(folder) if workdir else None
    if config.model.name:
        build_model(config, config.model.num_classes or 1)
    splits = open_same_splits(config, train_source, eval_source)
    pretrained = _open_weights(config) if config.model.pretrained and not stored else None
    if known := stored or (pretrained and pretrained.about):
        config = adopted(config, known)
    experiment = build_experiment(config, splits)
    teacher = _teacher_of(experiment) if not stored else None  # a finished run needs no teacher
    experiment.check()
    names = splits.class_names
    weights = read_pretrained(config, experiment.model, pretrained, names) if pretrained else None
    if dry_run:
        log.info("%s", experiment.summary())
        return None

    first(lambda: folder.claim(config, resume=resume))
    with (
        folder.locked(),
        contextlib.closing(Checkpoints(folder.path)) as checkpoints,
        ledger.counting_compilation(),
        matmul_precision(config),
    ):
        start = resumed_start(experiment, checkpoints, folder, forced=resume == "force")
        if start and (result := finished_result(experiment, start, folder)):
            return result
        teacher = teacher or _teacher_of(experiment)
        if start:
            check_teacher(start, teacher, config.distill.teacher, folder)
        # Only after all checks: a command that fails one of them keeps the stored configuration.
        gather(None)  # all have read what process 0 changes now
        first(partial(_keep_until, start, folder, config))
        log.info("%s", experiment.summary())
        if start:
            _log_resumed(experiment, start)
        else:
            first(checkpoints.start_over)
            if config.model.pretrained and weights is None:
                weights = read_pretrained(config, experiment.model, open_pretrained(config), names)
            start = fresh_start(experiment, weights)
            if stored is not None:
                log.info("no checkpoint: starting from step 0; earlier records are removed")
        from flax_resnet.training.trainer import build_trainer  # slow: imports TensorFlow

        with AccountWriter(folder, ledger, start.step) as writer:
            trainer, start = build_trainer(
                experiment, start, folder, checkpoints, teacher, observers
            )
            records = trainer.run(start, ledger)
            result = report(records, experiment, folder, start, writer.account())
    del trainer, start, teacher, weights  # their memory is free for what observers compute
    _tell_end(observers, folder)
    return result


def _check_arguments(
    config: Config, workdir: str | pathlib.Path | None, dry_run: bool, observers: Sequence[Observer]
) -> None:
    """Raise ConfigError if arguments of `train` do not fit together."""
    if not workdir and not dry_run:
        raise ConfigError(
            key="workdir",
            value=workdir,
            allowed="the path of the run folder, unless dry_run is set",
        )
    served = {observer.tracker for observer in observers}
    if absent := [name for name in config.log.trackers if name not in served]:
        raise ConfigError(
            f"no observer passes records to {' and '.join(absent)}",
            key="log.trackers",
            value=config.log.trackers,
            cure="pass those of flax_resnet.cli.tracker_observer.tracked, as the command does",
        )


def _check_same_command(config: Config, **arguments: Any) -> None:
    """Raise ProcessError if the processes were started with different arguments, configurations or versions."""
    everything = {**arguments, "config": dataclasses.asdict(config), "versions": versions()}
    check_same("the command", everything)


def _stored_config(folder: RunFolder) -> Config | None:
    """Return the configuration in the run folder, as process 0 reads it, or None for a new folder."""

    def read() -> dict[str, Any] | None:
        stored = folder.read_config()
        return dataclasses.asdict(stored) if stored else None

    values = first(read)
    return freeze(values) if values else None


def _open_weights(config: Config) -> Any:
    """Open pretrained weights: all processes together read a checkpoint; in turns, what may be downloaded."""
    if is_run(config.model.pretrained):
        return open_pretrained(config)
    return in_turns(lambda: open_pretrained(config))


def _keep_until(start: Start | None, folder: RunFolder, config: Config) -> None:
    """Store the configuration, and remove the records after the start."""
    if start and not folder.cut_records(start.step, judged_anew=start.judged_anew):
        log.warning("%s has no records: earlier scores are lost", folder)
    folder.store_config(config, scores_from=start.scores_from if start else 0)


def _tell_end(observers: Sequence[Observer], folder: RunFolder) -> None:
    for observer in observers:
        observer.on_end(folder.path)


def _log_resumed(experiment: Experiment, start: Start) -> None:
    epoch = start.step / experiment.plan.steps_per_epoch
    log.info("going on from checkpoint %d (epoch %.3g)", start.step, epoch)
    if start.judged_anew:
        log.info("scores before this step no longer count: --resume=force changed the run")


def _teacher_of(experiment: Experiment) -> Teacher | None:
    if not experiment.config.distill.teacher:
        return None
    names = experiment.splits.class_names
    return open_teacher(experiment.config, experiment.plan.num_classes, names)
