"""Observers that pass a run to experiment trackers, each from a thread of its own."""

import contextlib
import logging
import pathlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator

from flax_resnet.cli.atomic_write import atomic_write
from flax_resnet.errors import Interrupted
from flax_resnet.settings import UNSET
from flax_resnet.trackers.log_section import Log
from flax_resnet.trackers.tracker import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    TRACKERS,
    TrackedRun,
    Tracker,
    TrackerRow,
    check_installed,
    without_secrets,
)
from flax_resnet.training.observer import Observer
from flax_resnet.version import __version__

log = logging.getLogger("flax_resnet")

# The files of a run folder that a tracker stores at the end, those that exist.
FILES = ("config.json", "summary.txt", "results.csv", "classes.csv", "report.html", "report.png")
# Longest time in seconds that the command waits for a tracker at the end, by the status of the run.
PATIENCE = {FINISHED: 60.0, INTERRUPTED: 20.0, FAILED: 20.0}
QUIET = 3.0  # seconds after which a line says what the command waits for


class TrackerObserver(Observer):
    """Passes a run to a tracker. A failure costs a line of warning and the tracker's further records, not the run.

    The tracker is opened at the first record. Its calls run in a thread, so that training never waits for a server.
    With several processes, process 0 tracks.

    Args:
      row: the tracker.
      project: the group of runs.
      workdir: the run folder.
    """

    def __init__(self, row: TrackerRow, project: str, workdir: str | pathlib.Path) -> None:
        self._row, self._project, self.tracker = row, project, row.name
        self._workdir = pathlib.Path(workdir).expanduser().resolve()
        self._tasks: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._work, name=row.name, daemon=True)

    def on_record(self, step: int, epoch: float, split: str, values: dict[str, float]) -> None:
        """Pass a record on; its metrics have the names that TensorBoard shows."""
        import jax

        if jax.process_index():
            return
        if self._thread.ident is None:
            self._thread.start()
        metrics = {f"{split}/{name}": value for name, value in values.items()} | {"epoch": epoch}
        self._do(lambda tracker: tracker.log_metrics(step, metrics))

    def on_end(self, workdir: pathlib.Path) -> None:
        """Pass on which checkpoint is the best, and the files of the result."""

        def store(tracker: Tracker) -> None:
            tracker.describe(_best(workdir))
            for file in FILES:
                if (workdir / file).is_file():
                    tracker.log_file(workdir / file)

        self._do(store)

    def close(self, status: str) -> None:
        """End the tracker's run, and wait for it. Nothing happens if there was no record."""
        if self._failed or not self._thread.is_alive():
            return
        self._do(lambda tracker: tracker.finish(status))
        self._tasks.put(None)
        name, patience = self._row.name, PATIENCE[status]
        self._thread.join(min(QUIET, patience))
        if self._thread.is_alive():
            log.info("waiting for %s, at most %g s", name, patience)
            self._thread.join(patience)
        if self._thread.is_alive():
            log.warning("%s did not answer: its last records may be missing", name)

    def _do(self, task: Callable[[Tracker], None]) -> None:
        if self._thread.is_alive():
            self._tasks.put(task)

    def _work(self) -> None:
        tracker = None
        try:
            tracker = self._opened()
            tracker.describe(self._facts())
            log.info("tracked by %s: %s", self._row.name, tracker.address)
            while task := self._tasks.get():
                task(tracker)
        except Exception as error:  # training goes on, whatever happens here
            self._failed = True
            reason = without_secrets(error, self._row)
            log.warning("no further records for %s: %s", self._row.name, reason)
            with contextlib.suppress(Exception):  # otherwise the service shows the run as running
                if tracker:
                    tracker.finish(FAILED)

    def _opened(self) -> Tracker:
        """Open the run's tracker, and keep its id, so that a resumed run goes on in it."""
        from flax_resnet.config import flatten
        from flax_resnet.training.runs.folder import RunFolder

        config = RunFolder.at(self._workdir).read_config()
        assert config is not None  # stored before the first record
        file = self._workdir / f".{self._row.name}_run"
        run = TrackedRun(
            project=self._project,
            name=self._workdir.name,
            folder=self._workdir,
            settings={key: value for key, value in flatten(config).items() if value is not UNSET},
            run_id=file.read_text(encoding="utf-8").strip() if file.exists() else "",
        )
        tracker = self._row.open(run)
        if tracker.run_id != run.run_id:
            atomic_write(file, tracker.run_id.encode())
        return tracker

    def _facts(self) -> dict[str, str]:
        return {
            "workdir": str(self._workdir),
            "checkpoints": str(self._workdir / "checkpoints"),
            "host": socket.gethostname(),
            "flax_resnet": __version__,
        }


@contextlib.contextmanager
def tracked(section: Log, workdir: str | pathlib.Path) -> Iterator[list[Observer]]:
    """Yield the observers of ``log.trackers`` for a call of `train`; afterwards, end the runs of the trackers.

    Args:
      section: the log section of the configuration.
      workdir: the run folder.

    Raises:
      ConfigError: the package of a tracker is not installed.
    """
    check_installed(section.trackers)
    observers = [
        TrackerObserver(TRACKERS[name], section.project, workdir) for name in section.trackers
    ]
    status = FAILED
    try:
        yield [*observers]
        status = FINISHED
    except Interrupted:
        status = INTERRUPTED
        raise
    finally:
        for observer in observers:
            observer.close(status)


def _best(workdir: pathlib.Path) -> dict[str, str]:
    """Return the path of the best checkpoint, under the name that trackers store."""
    from flax_resnet.training.runs.folder import RunFolder
    from flax_resnet.training.runs.scores import best_step, scores

    folder = RunFolder.at(workdir)
    config = folder.read_config()
    assert config is not None
    best = best_step(scores(folder.read_records(), config, folder.scores_from()))
    return {"best_checkpoint": str(workdir / "checkpoints" / str(best))}
