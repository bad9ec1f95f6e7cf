"""Checkpoints: arrays and their metadata, with the checksum of every array verified on reading.

Only this file uses Orbax. ``checkpoints/STEP/`` holds ``state`` (the arrays) and ``run`` (JSON of `RunMetadata`).
The last two checkpoints and the best one are kept.
"""

import contextlib
import dataclasses
import logging
import pathlib
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from flax_resnet.errors import CheckpointError, DivergedError, UserError, WorkdirError, one_line
from flax_resnet.optim.evaluation_metrics import score
from flax_resnet.training.runs.metadata import RunMetadata, versions

log = logging.getLogger("flax_resnet")


class Restored(NamedTuple):
    """A verified checkpoint: its step, its state (or the requested fields of it), and its metadata."""

    step: int
    state: Any
    metadata: RunMetadata


class Checkpoints:
    """The checkpoints of a run folder.

    Args:
      workdir: the run folder.
      read_only: do not create or move any files.
      monitor: the metric that selects the best checkpoint.
    """

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False, monitor: str = "top1"):
        self._monitor = monitor
        self._folder = workdir.resolve() / "checkpoints"
        self._read_only = read_only
        self._pending: int | None = None
        self._open()

    def _open(self) -> None:
        def value(metrics: dict[str, float]) -> float:
            return score(metrics, self._monitor)

        best = ocp.checkpoint_managers.BestN(
            get_metric_fn=value, n=1, keep_checkpoints_without_metrics=False
        )
        latest = ocp.checkpoint_managers.LatestN(2)
        any_of = ocp.checkpoint_managers.AnyPreservationPolicy([latest, best])
        if not self._read_only:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise WorkdirError(
                    f"cannot be written: {one_line(error)}", key=self._folder
                ) from error
        with _without_remarks():
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=any_of,
                    best_fn=value,
                    create=not self._read_only,
                    read_only=self._read_only,
                    # Otherwise, threads that wait for a folder that cannot be made keep the process alive for
                    # minutes.
                    async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                ),
            )

    def steps(self) -> list[int]:
        """Return the saved steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, metadata: RunMetadata) -> None:
        """Start to write a checkpoint; training may continue in the meantime.

        Args:
          step: number of updates made; must be above all saved steps.
          state: pytree of arrays, all finite.
          metadata: metadata of the checkpoint; shapes, checksums and versions are filled in here.

        Raises:
          DivergedError: a leaf is not finite; nothing is written.
          CheckpointError: this write or the previous one failed.
        """
        self.wait()
        sums = checksums(state, must_be_finite=True)
        metadata = dataclasses.replace(
            metadata, shapes=shapes(state), checksums=sums, versions=versions()
        )
        try:
            started = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(metadata.to_json())
                ),
                metrics=metadata.metrics,
            )
        except OSError as error:
            raise self._unwritable(step, error) from error
        if not started:
            raise CheckpointError(
                f"was not written: the saved steps are {self.steps()}", key=self._path(step)
            )
        self._pending = step

    def wait(self) -> None:
        """Wait until the checkpoint being written is on disk. Raises CheckpointError if the write fails."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax reraises any error of its writing thread
            raise self._unwritable(step, error) from error
        if step not in self._manager.all_steps():
            raise CheckpointError("is missing after its save", key=self._path(step))

    def metadata(self, step: int) -> RunMetadata:
        """Read the metadata of a checkpoint.

        Raises:
          CheckpointError: the metadata cannot be read, or is corrupted.
          WorkdirError: another version of flax_resnet wrote the checkpoint.
        """
        path = self._path(step) / "run"
        try:
            args = ocp.args.Composite(run=ocp.args.JsonRestore())
            return RunMetadata.from_json(self._manager.restore(step, args=args)["run"], path)
        except UserError:
            raise
        except Exception as error:  # a corrupted checkpoint raises errors of many types
            raise CheckpointError(f"cannot be read: {one_line(error)}", key=path) from error

    def restore(self, step: int, abstract: Any) -> Restored:
        """Read and verify a complete checkpoint.

        Args:
          step: the step of the checkpoint.
          abstract: pytree of ShapeDtypeStructs with shardings.

        Raises:
          CheckpointError: the checkpoint is corrupted.
          WorkdirError: it is intact but holds another network, or another version of flax_resnet wrote it.
        """
        metadata = self.metadata(step)
        _check_shapes(self._path(step), metadata.shapes, shapes(abstract))
        state = self._read(step, ocp.args.StandardRestore(abstract))
        _check_sums(self._path(step) / "state", metadata.checksums, checksums(state))
        return Restored(step, state, metadata)

    def restore_parts(self, step: int, abstract: dict[str, Any]) -> Restored:
        """Read and verify only some fields of the state, such as `params` and `batch_stats`.

        Args:
          step: the step of the checkpoint.
          abstract: {field: pytree of ShapeDtypeStructs with shardings}.

        Raises:
          CheckpointError: a field is corrupted.
          WorkdirError: the checkpoint holds another network, or another version of flax_resnet wrote it.
        """
        metadata, fields = self.metadata(step), tuple(f"{name}/" for name in abstract)

        def of_fields(table: dict[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in table.items() if name.startswith(fields)}

        _check_shapes(self._path(step), of_fields(metadata.shapes), shapes(abstract))
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        parts = self._read(
            step, ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=True)
        )
        path = self._path(step) / "state"
        _check_sums(path, of_fields(metadata.checksums), checksums(parts))
        return Restored(step, parts, metadata)

    def _read(self, step: int, args: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        except Exception as error:  # truncated files raise errors of many types
            path = self._path(step) / "state"
            raise CheckpointError(f"cannot be read: {_reason(error)}", key=path) from error

    def _path(self, step: int) -> pathlib.Path:
        return self._folder / str(step)

    def _unwritable(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(f"cannot be written: {_reason(error)}", key=self._path(step))

    def restore_last_good(self, abstract: Any) -> Restored | None:
        """Restore the newest intact checkpoint; move newer, corrupted ones to ``checkpoints.bad/``.

        If corrupted checkpoints stayed in place, Orbax would skip saves up to their step.

        Returns:
          The checkpoint, or None if there is none.
        """
        while steps := self.steps():
            try:
                return self.restore(steps[-1], abstract)
            except CheckpointError as error:
                bad = self._folder.with_name("checkpoints.bad") / f"{steps[-1]}-{int(time.time())}"
                log.warning("%s; moved to %s", error, bad)
                self._manager.close()
                bad.parent.mkdir(exist_ok=True)
                shutil.move(self._folder / str(steps[-1]), bad)
                self._open()
        return None

    def resolve(self, checkpoint: str | int) -> int:
        """Return the saved step that "last", "best" or a step means. Raises CheckpointError if there is none."""
        steps = self.steps()
        if not steps:
            raise CheckpointError("holds no checkpoint", key=self._folder)
        if checkpoint == "last":
            return steps[-1]
        if checkpoint == "best":
            return self.best() or steps[-1]
        if str(checkpoint) in map(str, steps):
            return int(checkpoint)
        raise CheckpointError(
            f"is not in {self._folder}",
            key="checkpoint",
            value=checkpoint,
            allowed=("last", "best", *map(str, steps)),
        )

    def best(self) -> int | None:
        """Return the saved step with the best evaluation, or None if no saved step was evaluated.

        The metric is `train.monitor` of the last checkpoint.
        """
        metadata = {step: self.metadata(step) for step in self.steps()}
        metrics = {step: one.metrics for step, one in metadata.items() if one.metrics}
        if not metrics:
            return None
        monitor = metadata[max(metadata)].config["train"]["monitor"]
        return max(metrics, key=lambda step: score(metrics[step], monitor))

    def close(self) -> None:
        """Wait for the last write, and close Orbax's manager."""
        self.wait()
        self._manager.close()


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """Hide Orbax's warnings inside this block, such as that a folder opened for reading is only read."""
    absl = logging.getLogger("absl")

    def is_kept(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or "orbax" not in record.pathname

    absl.addFilter(is_kept)
    try:
        yield
    finally:
        absl.removeFilter(is_kept)


def _check_shapes(
    path: pathlib.Path, stored: dict[str, list[int]], wanted: dict[str, list[int]]
) -> None:
    """Raise WorkdirError if arrays have other shapes. Such a checkpoint is intact, so it is not moved."""
    if stored != wanted:
        odd = sorted(k for k in wanted.keys() | stored if stored.get(k) != wanted.get(k))
        raise WorkdirError(
            f"holds another network: {odd[0]} is {stored.get(odd[0])}, not {wanted.get(odd[0])}",
            key=path,
            cure="name another workdir",
        )


def _check_sums(path: pathlib.Path, stored: dict[str, int], found: dict[str, int]) -> None:
    """Raise CheckpointError if the checksums of arrays differ."""
    wrong = sorted(name for name in found.keys() | stored if found.get(name) != stored.get(name))
    if wrong:
        raise CheckpointError(
            f"is not what was saved: {len(wrong)} of {len(found)} arrays differ, such as {wrong[0]}",
            key=path,
        )


def checksums(state: Any, *, must_be_finite: bool = False) -> dict[str, int]:
    """Return {path: CRC-32 of the leaf's bytes}; a path looks like ``params/conv1/kernel``.

    Raises:
      DivergedError: `must_be_finite` is set, and a leaf is not finite.
    """
    sums = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        # Arrays are replicated over the mesh, so each device holds the whole array.
        array = np.ascontiguousarray(
            leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf
        )
        name = _name(path)
        if must_be_finite and not np.isfinite(array).all():
            raise DivergedError("is not finite", key=name)
        sums[name] = zlib.crc32(array.tobytes())
    return sums


def shapes(state: Any) -> dict[str, list[int]]:
    """Return {path: shape} of all leaves."""
    return {_name(path): list(leaf.shape) for path, leaf in jax.tree.leaves_with_path(state)}


def _reason(error: Exception) -> str:
    """Return the message of an error as one line; for an error of TensorStore, only the innermost cause.

    >>> _reason(ValueError("RESOURCE_EXHAUSTED: Error writing 'a': No space left on device [os_error_code='28']"))
    'No space left on device'
    """
    text, *metadata = re.split(r" \[(?:tensorstore_spec|os_error_code)", str(error), maxsplit=1)
    return text.rpartition(": ")[2] if metadata else one_line(error)


def _name(path: tuple) -> str:
    return "/".join(str(getattr(p, "name", getattr(p, "key", getattr(p, "idx", p)))) for p in path)
