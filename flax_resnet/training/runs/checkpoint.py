"""Checkpoints: arrays and their metadata, with the checksum of every array verified on reading.

Only this file uses Orbax. ``checkpoints/STEP/`` holds ``state`` (the arrays), ``run`` (JSON of `RunMetadata`), and
``files.json`` (the checksums of their files). The last two checkpoints and the best one are kept.
"""

import contextlib
import dataclasses
import logging
import pathlib
import shutil
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from flax_resnet.errors import (
    BrokenCheckpointError,
    CheckpointError,
    WorkdirError,
    one_line,
)
from flax_resnet.training.processes.exchange import check_same, first, gather
from flax_resnet.training.runs.array_checksums import (
    check_checksums,
    check_shapes,
    checksums,
    shapes,
)
from flax_resnet.training.runs.file_checksums import proof_of_damage, write_file_checksums
from flax_resnet.training.runs.metadata import RunMetadata, versions
from flax_resnet.training.runs.orbax_behaviour import Kept, identity, reason, without_remarks
from flax_resnet.training.runs.replaced import Replaced

MARKER = ".has_checkpoints"  # an empty file that tells a folder whose checkpoints were lost from a new one
DELETED = "deleted"  # the subfolder that old checkpoints are moved to before they are deleted

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

    Attributes:
      folder: the folder ``checkpoints``.
    """

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False):
        self.folder = workdir.resolve() / "checkpoints"
        self._bad = self.folder.with_name("checkpoints.bad")
        self._replaced = Replaced(self.folder)
        self._marker = self.folder.with_name(MARKER)
        self._read_only = read_only
        self._kept = Kept()
        self._pending: int | None = None
        self._open()

    def _open(self) -> None:
        if not self._read_only:
            first(self._make_folder)
        self._place = identity(self.folder)
        with without_remarks():
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self._kept,
                    create=not self._read_only,
                    read_only=self._read_only,
                    # Otherwise, a process that is killed while it deletes a checkpoint leaves a part of it.
                    todelete_subdir=None if self._read_only else DELETED,
                    # Otherwise, threads that wait for a folder that cannot be made keep the process alive for
                    # minutes.
                    async_options=ocp.AsyncOptions(
                        create_directories_asynchronously=False,
                        post_finalization_callback=self._write_file_checksums,
                    ),
                ),
            )

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._replaced.put_back()
            shutil.rmtree(self.folder / DELETED, ignore_errors=True)
        except OSError as error:
            raise WorkdirError(f"cannot be written: {one_line(error)}", key=self.folder) from error

    def _write_file_checksums(self) -> None:
        """Write the checksums of the pending checkpoint's files before Orbax renames its folder to STEP."""
        for folder in self.folder.glob(f"{self._pending}.orbax-checkpoint-tmp*"):
            write_file_checksums(folder)

    def steps(self) -> list[int]:
        """Return the saved steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, state: Any, metadata: RunMetadata, *, best: int | None = None
    ) -> None:
        """Start to write a checkpoint; training may continue in the meantime.

        Args:
          step: number of updates made. A checkpoint of the same step is replaced when the new one is complete; all
            others must be older.
          state: pytree of arrays, all finite.
          metadata: metadata of the checkpoint; shapes, checksums and versions are filled in here.
          best: the step of the best checkpoint, which is kept besides the last two.

        Raises:
          DivergedError: a leaf is not finite; nothing is written.
          CheckpointError: this write or the previous one failed; or the folder was removed or replaced. Orbax
            would make it anew, and the run would end in a folder without its start.
        """
        self.wait()
        if jax.process_index() == 0 and identity(self.folder) != self._place:
            problem = "cannot be written: its folder was removed or replaced, or cannot be reached"
            raise CheckpointError(problem, key=self._path(step))
        sums = checksums(state, must_be_finite=True)
        metadata = dataclasses.replace(
            metadata, shapes=shapes(state), checksums=sums, versions=versions()
        )
        self._pending, self._kept.best = step, best
        try:
            if step in self._manager.all_steps():
                first(lambda: self._replaced.put_aside(step))
                self._manager.reload()
            started = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(metadata.to_json())
                ),
            )
        except OSError as error:
            self._pending = None
            raise self._unwritable(step, error) from error
        if not started:
            self._pending = None
            raise CheckpointError(
                f"was not written: the saved steps are {self.steps()}", key=self._path(step)
            )

    def wait(self) -> None:
        """Wait until the checkpoint being written is on disk. Raises CheckpointError if the write fails."""
        if self._pending is None:
            return
        step = self._pending
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax reraises any error of its writing thread
            raise self._unwritable(step, error) from error
        finally:
            self._pending = None
        if step not in self._manager.all_steps():
            raise CheckpointError("is missing after its save", key=self._path(step))
        if jax.process_index() == 0:
            try:
                self._marker.touch()
            except OSError as error:
                raise self._unwritable(step, error) from error
            self._replaced.forget()
            shutil.rmtree(self.folder / DELETED, ignore_errors=True)

    def metadata(self, step: int) -> RunMetadata:
        """Read the metadata of a checkpoint.

        Raises:
          BrokenCheckpointError: the metadata is missing or corrupted.
          CheckpointError: the metadata cannot be read now.
          WorkdirError: another version of flax_resnet wrote the checkpoint.
        """
        path = self._path(step) / "run"
        try:
            args = ocp.args.Composite(run=ocp.args.JsonRestore())
            return RunMetadata.from_json(self._manager.restore(step, args=args)["run"], path)
        except (BrokenCheckpointError, WorkdirError):
            raise
        except Exception as error:  # a corrupted checkpoint raises errors of many types
            self._check_files(step, path)
            raise self._unreadable(path, error) from error

    def restore(self, step: int, abstract: Any) -> Restored:
        """Read and verify a complete checkpoint.

        Args:
          step: the step of the checkpoint.
          abstract: pytree of ShapeDtypeStructs with shardings.

        Raises:
          BrokenCheckpointError: the checkpoint is corrupted.
          CheckpointError: the checkpoint cannot be read now.
          WorkdirError: it is intact but holds another network, or another version of flax_resnet wrote it.
        """
        metadata = self.metadata(step)
        check_shapes(self._path(step), metadata.shapes, shapes(abstract))
        state = self._read(step, ocp.args.StandardRestore(abstract))
        check_checksums(self._path(step) / "state", metadata.checksums, checksums(state))
        return Restored(step, state, metadata)

    def restore_parts(self, step: int, abstract: dict[str, Any]) -> Restored:
        """Read and verify only some fields of the state, such as `params` and `batch_stats`.

        Args:
          step: the step of the checkpoint.
          abstract: {field: pytree of ShapeDtypeStructs with shardings}.

        Raises:
          BrokenCheckpointError: a field is corrupted.
          CheckpointError: a field cannot be read now.
          WorkdirError: the checkpoint holds another network, or another version of flax_resnet wrote it.
        """
        metadata, fields = self.metadata(step), tuple(f"{name}/" for name in abstract)

        def of_fields(table: dict[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in table.items() if name.startswith(fields)}

        check_shapes(self._path(step), of_fields(metadata.shapes), shapes(abstract))
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        parts = self._read(
            step, ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=True)
        )
        path = self._path(step) / "state"
        check_checksums(path, of_fields(metadata.checksums), checksums(parts))
        return Restored(step, parts, metadata)

    def _read(self, step: int, args: Any) -> Any:
        path = self._path(step) / "state"
        # First: Orbax and TensorStore report a damaged file with thousands of lines beside their error.
        self._check_files(step, path)
        try:
            return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        except Exception as error:  # truncated files raise errors of many types
            raise self._unreadable(path, error) from error

    def _damage(self, step: int, path: pathlib.Path) -> str:
        """Return how a checkpoint's files are damaged, or "". Raises CheckpointError if they cannot be read now.

        Args:
          step: the step of the checkpoint.
          path: what is to be read, for the error.
        """
        try:
            damage = proof_of_damage(self._path(step))
        except (OSError, MemoryError) as error:
            raise self._unreadable(path, error) from error
        return f"is damaged: {damage}" if damage else ""

    def _check_files(self, step: int, path: pathlib.Path) -> None:
        """Raise BrokenCheckpointError if a file is damaged, and CheckpointError as `_damage`; in process 0."""
        if jax.process_index() == 0 and (damage := self._damage(step, path)):
            raise BrokenCheckpointError(damage, key=path)

    def _unreadable(self, path: pathlib.Path, error: BaseException) -> CheckpointError:
        return CheckpointError(
            f"cannot be read now: {reason(error)}",
            key=path,
            cure="nothing was moved: run the command again when the cause is gone, or move this folder away to "
            "resume from the checkpoint before",
        )

    def _path(self, step: int) -> pathlib.Path:
        return self.folder / str(step)

    def _unwritable(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(f"cannot be written: {reason(error)}", key=self._path(step))

    def restore_last_good(self, abstract: Any, *, starts_over: bool = False) -> Restored | None:
        """Restore the newest intact checkpoint; move newer, broken ones to ``checkpoints.bad/``.

        If broken checkpoints stayed in place, Orbax would skip saves up to their step.

        Args:
          abstract: pytree of ShapeDtypeStructs with shardings.
          starts_over: return None if no checkpoint is left, instead of raising an error.

        Returns:
          The checkpoint, or None if there is none.

        Raises:
          CheckpointError: the newest checkpoint cannot be read now, and nothing was moved; or the folder had
            checkpoints, and none is left.
        """
        while steps := self.steps():
            check_same(f"the newest checkpoint in {self.folder}", steps[-1])
            # With several processes, process 0 looks for damage before Orbax makes them wait for each other.
            path = self._path(steps[-1])
            problem = jax.process_count() > 1 and first(partial(self._damage, steps[-1], path))
            try:
                restored = None if problem else self.restore(steps[-1], abstract)
            except BrokenCheckpointError as error:
                problem = str(error)
            if not any(problems := gather(problem)):
                return restored
            self._manager.close()
            first(partial(self._move_away, path, next(filter(None, problems))))
            self._open()
        if first(self._marker.exists) and not starts_over:
            broken = f"; broken ones are in {self._bad}" if self._bad.is_dir() else ""
            raise CheckpointError(
                f"no intact checkpoint is left{broken}",
                key=self.folder,
                cure="restore one from a backup, or start again from step 0 with --resume=force",
            )
        return None

    def _move_away(self, path: pathlib.Path, problem: str) -> None:
        bad = self._bad / f"{path.name}-{int(time.time())}"
        log.warning("%s; moved to %s", problem, bad)
        bad.parent.mkdir(exist_ok=True)
        self._marker.touch()
        shutil.move(path, bad)

    def start_over(self) -> None:
        """Forget that the folder had checkpoints; all are lost, and the run starts again from step 0."""
        self._marker.unlink(missing_ok=True)

    def close(self) -> None:
        """Wait for the last write, and close Orbax's manager. Raises CheckpointError if the write fails."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # it raises the error of a failed write again
                self._manager.close()
