"""Checkpoints: the state and all that is needed to use it, verified leaf by leaf on the way back.

The only file that knows Orbax. Under ``checkpoints/STEP/`` lie ``state`` (arrays) and ``run`` (JSON: config,
class names, versions, metrics, unreadable images, a checksum per leaf). The last two and the best are kept.
"""

import importlib.metadata
import logging
import pathlib
import shutil
import time
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from flax_resnet.errors import CheckpointError, DivergedError, WorkdirError, one_line, suggestion
from flax_resnet.optim.metrics import score

log = logging.getLogger("flax_resnet")
logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every save in several lines

PACKAGES = ("flax_resnet", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")


class Restored(NamedTuple):
    """A verified checkpoint: its step, its state, and what was saved beside it."""

    step: int
    state: Any
    run: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run folder.

    Args:
      workdir: the run folder.
      read_only: nothing is made or moved.
      judged_by: the metric that says which checkpoint is the best and is kept.
    """

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False, judged_by: str = "top1"):
        self._judged_by = judged_by
        self._folder = workdir.resolve() / "checkpoints"
        self._read_only = read_only
        self._pending: int | None = None
        self._open()

    def _open(self) -> None:
        def value(metrics: dict[str, float]) -> float:
            return score(metrics, self._judged_by)

        best = ocp.checkpoint_managers.BestN(
            get_metric_fn=value, n=1, keep_checkpoints_without_metrics=False
        )
        latest = ocp.checkpoint_managers.LatestN(2)
        any_of = ocp.checkpoint_managers.AnyPreservationPolicy([latest, best])
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=any_of,
                best_fn=value,
                create=not self._read_only,
                read_only=self._read_only,
            ),
        )

    def steps(self) -> list[int]:
        """Returns the saved steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, run: dict[str, Any], metrics: dict | None) -> None:
        """Starts to write a checkpoint; training may go on meanwhile.

        Args:
          step: number of updates made; above every saved one.
          state: pytree of arrays, all finite.
          run: JSON object stored beside the state.
          metrics: of the evaluation at this step, if there was one.

        Raises:
          DivergedError: a leaf is not finite; nothing is written.
          CheckpointError: this or the write before it did not succeed.
        """
        self.wait()
        sums = checksums(state, must_be_finite=True)
        run = {
            **run,
            "shapes": shapes(state),
            "checksums": sums,
            "versions": versions(),
            "metrics": metrics,
        }
        try:
            started = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run)
                ),
                metrics=metrics,
            )
        except OSError as error:
            raise CheckpointError(f"cannot write checkpoint {step}: {one_line(error)}") from error
        if not started:
            raise CheckpointError(
                f"checkpoint {step} was not written: {self._folder} holds {self.steps()}"
            )
        self._pending = step

    def wait(self) -> None:
        """Returns once the checkpoint being written lies on disk. Raises CheckpointError if it does not."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax raises whatever its writing thread met
            raise CheckpointError(f"cannot write checkpoint {step}: {one_line(error)}") from error
        if step not in self._manager.all_steps():
            raise CheckpointError(f"checkpoint {step} is not in {self._folder} after its save")

    def run(self, step: int) -> dict[str, Any]:
        """Reads what was saved beside the state. Raises CheckpointError where it cannot be read."""
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(run=ocp.args.JsonRestore())
            )
            run = restored["run"]
            if not isinstance(run, dict) or not {"checksums", "shapes"} <= run.keys():
                raise ValueError("its description is incomplete")
        except Exception as error:  # a damaged checkpoint raises many types
            raise CheckpointError(f"checkpoint {step} cannot be read: {one_line(error)}") from error
        return run

    def restore(self, step: int, abstract: Any) -> Restored:
        """Reads and verifies a checkpoint.

        Args:
          step: which.
          abstract: pytree of ShapeDtypeStructs with shardings.

        Raises:
          CheckpointError: it is damaged.
          WorkdirError: it is intact but holds another network.
        """
        run = self.run(step)
        stored, wanted = run.get("shapes"), shapes(abstract)
        if stored != wanted:  # not damaged, so it must not be moved aside
            odd = sorted(k for k in wanted.keys() | stored if stored.get(k) != wanted.get(k))
            raise WorkdirError(
                f"checkpoint {step} holds another network: {odd[0]} is {stored.get(odd[0])}, not "
                f"{wanted.get(odd[0])}; name another workdir"
            )
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            state = self._manager.restore(step, args=args)["state"]
        except Exception as error:  # truncated files raise many types
            raise CheckpointError(f"checkpoint {step} cannot be read: {one_line(error)}") from error
        found = checksums(state)
        wrong = sorted(
            k for k in found.keys() | run["checksums"] if found.get(k) != run["checksums"].get(k)
        )
        if wrong:
            raise CheckpointError(
                f"checkpoint {step} is not what was saved: {len(wrong)} of {len(found)} arrays differ, "
                f"such as {wrong[0]}"
            )
        return Restored(step, state, run)

    def restore_last_good(self, abstract: Any) -> Restored | None:
        """Restores the newest checkpoint that is what was saved; moves newer, damaged ones aside.

        They go to ``checkpoints.bad/``: left in place, Orbax would skip saves up to their step.

        Returns:
          The checkpoint, or None where there is none.
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
        """Turns "last", "best" or a step into a step. Raises CheckpointError if there is none such."""
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self._folder} holds no checkpoint")
        if checkpoint == "last":
            return steps[-1]
        if checkpoint == "best":
            return self.best() or steps[-1]
        text = str(checkpoint)
        if text.isdigit() and int(text) in steps:
            return int(text)
        raise CheckpointError(
            f"checkpoint {text!r} is not in {self._folder}: "
            + suggestion(text, ["last", "best", *map(str, steps)])
        )

    def best(self) -> int | None:
        """Returns the step with the best evaluation among those kept, by what the last of them was judged by."""
        runs = {step: self.run(step) for step in self.steps()}
        evaluated = {step: run["metrics"] for step, run in runs.items() if run.get("metrics")}
        if not evaluated:
            return None
        name = runs[max(runs)]["config"].get("train", {}).get("judged_by", self._judged_by)
        return max(evaluated, key=lambda step: score(evaluated[step], name))

    def close(self) -> None:
        """Waits for the last write and lets go of the folder."""
        self.wait()
        self._manager.close()


def checksums(state: Any, *, must_be_finite: bool = False) -> dict[str, int]:
    """Returns the CRC-32 of every leaf's bytes by its path, such as ``params/conv1/kernel``.

    Raises:
      DivergedError: `must_be_finite`, and a leaf is not.
    """
    sums = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        # Replicated over the mesh: any one device holds all of it.
        array = np.ascontiguousarray(
            leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf
        )
        name = _name(path)
        if must_be_finite and not np.isfinite(array).all():
            raise DivergedError(f"{name} is not finite")
        sums[name] = zlib.crc32(array.tobytes())
    return sums


def shapes(state: Any) -> dict[str, list[int]]:
    """Returns the shape of every leaf by its path."""
    return {_name(path): list(leaf.shape) for path, leaf in jax.tree.leaves_with_path(state)}


def _name(path: tuple) -> str:
    return "/".join(str(getattr(p, "name", getattr(p, "key", getattr(p, "idx", p)))) for p in path)


def versions() -> dict[str, str]:
    """Returns the installed versions of what a checkpoint depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"  # run from a checkout
    return found
