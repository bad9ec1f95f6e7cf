"""Weights & Biases: settings are the run's config, metrics have the names of TensorBoard, files are files.

Its own environment variables apply, such as WANDB_MODE=offline, WANDB_ENTITY and WANDB_API_KEY.
"""

import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from flax_resnet.errors import INTERRUPTED as INTERRUPTED_CODE
from flax_resnet.settings import Clash
from flax_resnet.trackers.tracker import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    TrackedRun,
    Tracker,
    TrackerRow,
)

EXIT_CODES = {FINISHED: 0, INTERRUPTED: INTERRUPTED_CODE, FAILED: 1}
FORBIDDEN = r"/\#?%:"  # characters that the name of a project must not have
OFFLINE = ("offline", "dryrun", "disabled")


class WandbTracker:
    """A run of W&B; see `Tracker`.

    Args:
      run: the run of the package wandb.
    """

    def __init__(self, run: Any) -> None:
        self.run_id = run.id
        own = pathlib.Path(run.dir).parent
        self.address = f"{own}, to upload by wandb sync" if run.offline else run.url
        self._run = run

    def describe(self, facts: Mapping[str, str]) -> None:
        """Store texts in the summary."""
        self._run.summary.update(dict(facts))

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Store metrics."""
        # Not as W&B's own step: W&B drops steps that a resumed run trains again.
        self._run.log({"step": step, **metrics})

    def log_file(self, path: pathlib.Path) -> None:
        """Store a file."""
        # A file outside this folder becomes a link to it, which breaks when the run folder moves.
        copy = shutil.copy(path, self._run.dir)
        self._run.save(copy, base_path=self._run.dir, policy="now")

    def finish(self, status: str) -> None:
        """End the run. W&B shows an interrupted run as preempted."""
        if status == INTERRUPTED:
            self._run.mark_preempting()
        self._run.finish(exit_code=EXIT_CODES[status])


def open_run(run: TrackedRun) -> Tracker:
    """Open an earlier run, or else a new one in the project `run.project`. Its files are in the run folder."""
    import wandb

    # Without a key, wandb.init would ask for one on the terminal.
    if wandb.setup().settings.mode not in OFFLINE and not wandb.login(prompt=False, verify=False):
        raise RuntimeError("not logged in: run wandb login, or set WANDB_MODE=offline")
    opened = wandb.init(
        project=run.project,
        name=run.name,
        id=run.run_id or None,
        resume="allow" if run.run_id else None,
        dir=os.environ.get("WANDB_DIR") or run.folder,
        reinit="create_new",
        # The terminal belongs to the progress bar.
        settings=wandb.Settings(console="off", silent=True),
    )
    opened.define_metric("*", step_metric="step")
    opened.config.update(dict(run.settings), allow_val_change=True)
    return WandbTracker(opened)


ROWS = (
    TrackerRow(
        name="wandb",
        help="Weights & Biases",
        package="wandb",
        secrets=("WANDB_API_KEY",),
        open=open_run,
        clashes=(
            Clash(
                key="project",
                when=lambda c: any(mark in c.project for mark in FORBIDDEN),
                allowed=f"without any of {' '.join(FORBIDDEN)} for wandb",
            ),
        ),
    ),
)
